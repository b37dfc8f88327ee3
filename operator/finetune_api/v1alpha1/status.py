"""`status`: the observed state of the job. Only the operator writes it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..constants import TERMINAL_CONDITIONS, ConditionType, Phase, Reason, Stage
from .base import StatusModel
from .baselines import SimpleBaseline
from .metrics import Metric
from .results import GgufType

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC."""

MAX_HISTORY = 50
"""Maximum of `spec.historyLimit`: each past run takes about 1 KB of the object."""
MAX_SETTING_LENGTH = 90
"""Characters of the value of a field."""
MAX_CHANGES = 16
MAX_CHANGE_LENGTH = 256
"""Characters of one change: a path and two values."""
Changes = Annotated[tuple[Annotated[str, Field(max_length=MAX_CHANGE_LENGTH)], ...], Field(max_length=MAX_CHANGES)]
"""Changed fields, such as `spec.training.learningRate: 0.0001 -> 0.0002`."""
MAX_NOTES = 8
MAX_WARNINGS = 16
MAX_PROMOTION_MESSAGE = 1024
MAX_POLL_MESSAGE = 256
MAX_WARNING_LENGTH = 1024
"""Characters of one warning or note."""
MAX_PLAN_REASON = 256


class Condition(StatusModel):
    """One aspect of the job's state."""

    type: ConditionType
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Reason
    """Machine-readable reason of the last change."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Human-readable details."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: int = 0
    """Generation of the spec that the condition is based on."""


class ProgressStatus(StatusModel):
    """Progress of the training."""

    step: int = 0
    """Completed optimizer steps."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    percent: int = 0
    """Completed share of the optimizer steps, in whole percent."""
    epoch: float = 0.0
    """Completed passes over the training split."""
    loss: float | None = None
    """Training loss, mean of the last ten logged steps."""
    learning_rate: float | None = None
    """Last logged learning rate."""
    tokens_per_second: float | None = None
    """Tokens per second without padding, over all workers."""
    step_seconds: float | None = None
    """Recent mean time of an optimizer step, in seconds."""
    eta_seconds: int | None = None
    """Estimated time to the last step, in seconds, from the recent step time."""
    checkpoint_every_steps: int | None = None
    """Optimizer steps between two saves, derived from `checkpoint.maxLostWork`."""
    checkpoint_late: str | None = None
    """Why a crash would now lose more work than `checkpoint.maxLostWork`. Absent: it would not."""


class OverfittingStatus(StatusModel):
    """The losses that `training.overfitting` has compared: when it first found overfitting, else the last ones."""

    found: bool
    """Whether the training overfits. It stays true, unless the training resumes from an earlier step."""
    step: int
    """Optimizer step of the validation."""
    validation_loss: float
    """Validation loss."""
    training_loss: float
    """Mean training loss since the validation before."""
    lowest_step: int
    """Step of the validation with the lowest loss until then."""
    lowest_validation_loss: float
    """That loss."""
    training_loss_at_lowest: float
    """Training loss at that validation."""


class CheckpointStatus(StatusModel):
    """The last committed checkpoint."""

    uri: str
    """Address of its manifest."""
    step: int
    """Optimizer step of the checkpoint."""
    time: Time
    """When it was committed."""
    save_seconds: float | None = None
    """Seconds from the start of the save to its commit. Determines the grace period of the pods."""


class FailureStatus(StatusModel):
    """Why the job, or its last attempt, failed."""

    failure_class: Annotated[str, Field(alias="class")]
    """Exit class, such as BadData or OutOfMemory."""
    stage: str
    """Stage that failed."""
    attempt: int = 0
    """Attempt that failed, counted from 1 within the stage."""
    rank: int | None = None
    """First rank that failed."""
    pod: str = ""
    """Pod of that rank."""
    node: str = ""
    """Node that the pod ran on."""
    exit_code: int = 0
    """Exit status of the pod."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """The error and the last lines of the log."""
    advice: Annotated[str, Field(max_length=1024)] = ""
    """How to correct the failure."""


class Outcome(StrEnum):
    """How an attempt ended. It determines whether another attempt follows."""

    SUCCEEDED = "Succeeded"
    STOPPED = "Stopped"
    PERMANENT = "Permanent"
    RETRYABLE = "Retryable"
    DISRUPTION = "Disruption"
    REJECTED = "Rejected"

    @property
    def is_failure(self) -> bool:
        """Whether the attempt failed. An attempt that was stopped on request did not."""
        return self not in {Outcome.SUCCEEDED, Outcome.STOPPED}


class AttemptPlan(StatusModel):
    """Plan that a training attempt is started with."""

    nodes: Annotated[int, Field(ge=1, le=512)]
    """Worker pods."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples per process and forward pass."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | None = None
    """Forward passes per optimizer step."""
    micro_batch_limit: Annotated[int, Field(ge=1)] | None = None
    """Largest micro-batch that fits in the memory of the workers or their GPUs, or a smaller one if a restart rule
    lowered it, which applies until the spec changes. Absent: no maximum."""
    micro_batch_measured: bool = False
    """Whether an attempt of the run has measured that maximum, which then applies instead of the estimated one."""
    reason: Annotated[str, Field(max_length=MAX_PLAN_REASON)] = ""
    """Why the plan differs from the spec. Empty: it does not."""


class AttemptStatus(StatusModel):
    """One attempt at a stage."""

    stage: Stage
    """Stage of the attempt."""
    number: int
    """Counted from 1 within the run and the stage."""
    job_name: str
    """Name of its Kubernetes Job."""
    start_time: Time
    """When its Job was created."""
    queue: str = ""
    """Queue in which its Job waits until it is admitted. Empty: none."""
    admitted_time: Time | None = None
    """When the queue admitted its Job. Absent: it waits, or has no queue."""
    running_time: Time | None = None
    """Attempts in a queue: when one of its pods was first seen running. Absent: none was."""
    gpus: int | None = None
    """GPUs of all its pods. Absent: none."""
    plan: AttemptPlan | None = None
    """Plan that the attempt was started with. Absent: prepare and evaluate attempts, which have one pod."""
    spec_hash: str = ""
    """Hash of the spec fields that the attempt was started with (scope Attempt)."""
    evaluation_spec_hash: str = ""
    """Evaluate attempts: hash of the spec fields that determine the evaluation and the exported formats."""
    first_step_time: Time | None = None
    """When its first optimizer step was completed."""
    known_checkpoint_step: int | None = None
    """Training attempts: newest step that an earlier attempt is known to have saved. Absent: none."""
    end_time: Time | None = None
    """When its last pod ended."""
    resumed_from_step: int | None = None
    """Step of the checkpoint it started from. Absent: from the base model, or not yet known."""
    last_step: int | None = None
    """Last optimizer step that was observed."""
    outcome: Outcome | None = None
    """How the attempt ended. Absent: it has not ended."""
    reason: str = ""
    """Exit class of a failure, such as OutOfMemory or Signal9."""
    exit_code: int | None = None
    """Exit status of the pod that failed first. Absent: unknown, or no pod failed."""
    message: Annotated[str, Field(max_length=256)] = ""
    """First line of the error of a failure."""
    superseded_by_spec_change: bool | None = None
    """True: the run failed with this attempt and was continued after its spec was changed."""


class CandidateName(StrEnum):
    """A model that was evaluated on the test split."""

    BASE_MODEL = "baseModel"
    """The base model."""
    TUNED = "tuned"
    """The fine-tuned model."""
    PROMOTED = "promoted"
    """The promoted model, evaluated on the test split of this run."""
    PRUNED = "pruned"
    """The base model after `spec.method.full.pruning`, before the training."""
    MAJORITY_CLASS = "majorityClass"
    TFIDF_LOGISTIC_REGRESSION = "tfidfLogisticRegression"
    INT8 = "int8"
    """The fine-tuned model, exported as Int8."""
    GGUF_F16 = "ggufF16"
    """The fine-tuned model, exported as GGUF. So are those below with this prefix."""
    GGUF_BF16 = "ggufBF16"
    GGUF_Q8_0 = "ggufQ8_0"
    GGUF_Q5_0 = "ggufQ5_0"
    GGUF_Q4_0 = "ggufQ4_0"
    COMPRESSED_TENSORS = "compressedTensors"
    """The fine-tuned model, exported as CompressedTensors."""

    @classmethod
    def _missing_(cls, value: object) -> "CandidateName | None":
        """Read the name that the base model had in the first statuses."""
        return cls.BASE_MODEL if value == "baseline" else None

    @classmethod
    def of(cls, baseline: SimpleBaseline) -> "CandidateName":
        """The candidate that is a simple baseline."""
        return cls(baseline[0].lower() + baseline[1:])

    @classmethod
    def of_gguf(cls, kind: GgufType) -> "CandidateName":
        """The candidate that is a GGUF file."""
        return cls(f"gguf{kind}")


class CandidateStatus(StatusModel):
    """One model that was evaluated on the test split."""

    metrics: dict[Metric, float] = {}
    """Metrics of the test split."""
    regression_sets: dict[str, dict[Metric, float]] | None = None
    """Metrics of each set of `spec.evaluation.regressionSets`, by name. Absent: not evaluated on any."""
    bytes: int | None = None
    """Exports with quantized weights, and the fine-tuned model beside them: size of the files of the model."""
    examples_per_second: float | None = None
    """Speed of the forward passes over the test split, measured once."""


class ArtifactStatus(StatusModel):
    """The exported model."""

    uri: str
    """Address of the folder, in Hugging Face layout."""
    digest: str
    """SHA-256 over the files' names and contents."""
    report: str = ""
    """Address of the HTML report."""


class PromotionOutcome(StrEnum):
    """Result of a promotion."""

    PROMOTED = "Promoted"
    REFUSED = "Refused"
    """A condition of `spec.evaluation.promote` does not hold."""
    CONFLICT = "Conflict"
    """Another model was promoted while this one was being evaluated."""


class PromotionStatus(StatusModel):
    """Result of `spec.evaluation.promote` for this run."""

    outcome: PromotionOutcome
    """Promoted, Refused or Conflict."""
    message: Annotated[str, Field(max_length=MAX_PROMOTION_MESSAGE)] = ""
    """Every condition with its value."""
    uri: str = ""
    """Folder of the model that is promoted now."""
    previous: str = ""
    """Folder of the model that was promoted before. Empty: none."""
    time: Time | None = None
    """When it was decided."""


class RuleStatus(StatusModel):
    """What one optional step of the data, for example a rule of `data.cleaning`, did to the records."""

    rule: str = ""
    """Name of the field."""
    changed: int = 0
    """Records with other text than in their file."""
    dropped: int = 0
    """Records that are in no split."""
    added: int = 0
    """Changed copies of records in the training split."""


class ResolvedStatus(StatusModel):
    """Values of the fields that the user left out, and facts about model and data."""

    task: str = ""
    """Head and loss."""
    format: str = ""
    """Data format."""
    dtype: str = ""
    """Floating-point type."""
    zero_stage: int | None = None
    """ZeRO stage of the last training attempt."""
    offload: str = ""
    """Offload that was chosen because `deepspeed.offload` is absent and training does not fit in the GPUs without it.
    Empty: none was chosen."""
    learning_rate: float | None = None
    """Peak learning rate that was chosen because `training.learningRate` is absent."""
    micro_batch_size: int | None = None
    """Examples per process and forward pass."""
    micro_batch_limit: int | None = None
    """Largest micro-batch that fits in the memory of the workers or their GPUs, if `training.microBatchSize` is absent.
    Absent: no maximum."""
    micro_batch_memory: str | None = None
    """The memory of the workers or of their GPUs that the maximum was computed for. It does not apply to another
    one."""
    gradient_accumulation_steps: int | None = None
    """Forward passes per optimizer step."""
    batching: str = ""
    """How examples share a batch."""
    dataset: str = ""
    """Address of the prepared dataset."""
    dataset_digest: str = ""
    """Digest of the prepared dataset."""
    source_digest: str = ""
    """Digest of the listing of the source files, which `data.poll` compares."""
    model_digest: str = ""
    """Digest of the base model."""
    parameters: int | None = None
    """Parameters of the base model."""
    frozen_parameters: int | None = None
    """Those of them that `method.full.freeze` excludes from the training. Absent: none."""
    rules: tuple[RuleStatus, ...] = ()
    """Counts of the optional steps of the data, in their order."""
    test_tokens: int | None = None
    """Tokens of the test split."""
    regression_tokens: int | None = None
    """Tokens of the regression sets with which the run was prepared. Absent: none."""
    model_revision: str = ""
    """Commit on the hub that the revision of the base model pointed to when the run was prepared."""
    requested_revision: str | None = None
    """Revision as written in spec.model.uri. Empty: the default branch. Absent: the model is not from the hub."""


class RunTrigger(StrEnum):
    """Why a run was started."""

    SPEC = "Spec"
    """The job was created, or a field of scope Data or Run was changed."""
    SCHEDULE = "Schedule"
    """A time of `spec.schedule` passed."""
    DATA = "Data"
    """`spec.data.poll` found that the source files have changed."""


class CostStatus(StatusModel):
    """What the attempts of a run have occupied, from the creation of their Jobs to the end of their last pod."""

    pod_seconds: int = 0
    """Seconds, multiplied by the number of pods."""
    gpu_seconds: int = 0
    """Seconds, multiplied by the number of GPUs."""


class RunStatus(StatusModel):
    """One run: everything from the prepared data to the evaluated model."""

    number: int = 0
    """Number of the run, counted from 1. 0: no run has started."""
    spec_hash: str = ""
    """Hash of the spec fields that determine the result (scopes Data and Run). A different hash starts a new run."""
    trigger: RunTrigger = RunTrigger.SPEC
    """Why the run was started."""
    changes: Changes = ()
    """Fields of scope Data or Run that differ from the run before, with both values. Long values are shortened."""
    settings: Annotated[dict[str, Annotated[str, Field(max_length=MAX_SETTING_LENGTH)]], Field(max_length=256)] = {}
    """Fields of scope Data or Run that differ from their default, as JSON; long values are shortened. The changes of
    the next run are computed from them."""
    cost: CostStatus | None = None
    """What the attempts that have ended have occupied."""
    failed_spec_hash: str | None = None
    """Failed runs: hash of the spec fields that may correct the failure. The run continues when the hash changes."""
    stage: str = ""
    """Stage that is running or ran last."""
    attempt: int = 0
    """Attempt of that stage that is running or ran last."""
    progress: ProgressStatus | None = None
    """Progress of the training."""
    last_checkpoint: CheckpointStatus | None = None
    """The last committed checkpoint."""
    overfitting: OverfittingStatus | None = None
    """What `training.overfitting` has found. Absent: it is not set, or no validation was compared."""
    warnings: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_WARNING_LENGTH)], ...], Field(max_length=MAX_WARNINGS)
    ] = ()
    """The last sixteen distinct warnings of the stages."""
    notes: Annotated[tuple[Annotated[str, Field(max_length=MAX_WARNING_LENGTH)], ...], Field(max_length=MAX_NOTES)] = ()
    """What the prepare stage has found and chosen, one line each."""
    restarts: int = 0
    """Failures of the stage that failed last, since its last new checkpoint. Limited by `restart.maxRestarts`."""
    disruptions: int = 0
    """Disruptions of the run. Limited by `restart.maxDisruptions`."""
    resolved: ResolvedStatus | None = None
    """Values of the fields that the user left out, and facts about model and data."""
    candidates: dict[CandidateName, CandidateStatus] = {}
    """Models that were evaluated on the test split."""
    artifact: ArtifactStatus | None = None
    """The exported model."""
    promotion: PromotionStatus | None = None
    """Result of `spec.evaluation.promote`. Absent: it is not set, or the model has not been evaluated."""
    failure: FailureStatus | None = None
    """Why the run, or its last attempt, failed."""
    attempts: Annotated[tuple[AttemptStatus, ...], Field(max_length=10)] = ()
    """The last ten attempts of the run, oldest first."""
    next_plan: AttemptPlan | None = None
    """Plan of the next training attempt, if the running attempt is being stopped for it."""
    start_time: Time | None = None
    """When the run started."""
    suspended_since: Time | None = None
    """When `spec.suspend` was set to true, or since when the run waits in a queue. Absent: neither."""
    suspended_seconds: float | None = None
    """Seconds for which the run was suspended or in a queue before. They do not count against the deadline."""
    completion_time: Time | None = None
    """When the run ended."""
    children_removed: bool | None = None
    """True: the run is complete, and its Jobs and pods were removed after `spec.ttlSecondsAfterFinished`."""


class PastRun(StatusModel):
    """Summary of a run that a later run replaced."""

    number: int
    """Number of the run."""
    spec_hash: str = ""
    """Hash of the spec fields that determined its result."""
    result: Literal["Succeeded", "Failed", "Superseded"]
    """How the run ended. Superseded: the spec changed while it was running."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Reason of a failure."""
    message: Annotated[str, Field(max_length=256)] = ""
    """First line of the message of a failure."""
    start_time: Time | None = None
    """When the run started."""
    completion_time: Time | None = None
    """When the run ended. Absent: it was superseded while it was running."""
    trigger: RunTrigger = RunTrigger.SPEC
    """Why the run was started."""
    changes: Changes = ()
    """Fields that differed from the run before."""
    step: int | None = None
    """Last optimizer step."""
    cost: CostStatus | None = None
    """What its attempts have occupied."""
    candidates: dict[CandidateName, CandidateStatus] = {}
    """Models that were evaluated on the test split."""
    artifact: ArtifactStatus | None = None
    """The exported model."""
    promotion: PromotionStatus | None = None
    """Result of `spec.evaluation.promote`. Absent: it was not set."""
    resolved: ResolvedStatus | None = None
    """Values of the fields that the user left out, and facts about model and data."""
    last_checkpoint: CheckpointStatus | None = None
    """Its last committed checkpoint."""
    overfitting: OverfittingStatus | None = None
    """What `training.overfitting` has found. Absent: it was not set, or no validation was compared."""
    attempts: Annotated[tuple[AttemptStatus, ...], Field(max_length=10)] = ()
    """Its last ten attempts. They continue if the spec is changed back to that of this run."""
    files_deleted: bool | None = None
    """True: `spec.output.keepRuns` has deleted its files, so that the run cannot be reused."""


class ScheduleStatus(StatusModel):
    """State of `spec.schedule`."""

    cron: str
    """Expression that the times were computed from."""
    time_zone: str
    """Its time zone."""
    next_time: Time
    """Next scheduled time."""
    last_time: Time | None = None
    """Last scheduled time for which a run was started. Absent: none."""


class PollStatus(StatusModel):
    """State of `spec.data.poll`."""

    number: int = 0
    """Polls so far."""
    last_time: Time | None = None
    """When the last poll ended."""
    message: Annotated[str, Field(max_length=MAX_POLL_MESSAGE)] = ""
    """Why the last poll failed. Empty: it did not."""
    source_digest: str = ""
    """Digest of the listing of the last poll that succeeded."""


class DisplayStatus(StatusModel):
    """Values formatted as text, for the columns of `kubectl get`."""

    progress: str = ""
    """Completed share of the optimizer steps, such as `27%`."""
    loss: str = ""
    """Training loss with four significant digits."""
    eta: str = ""
    """Estimated time to the last step, such as `2m14s`."""


class Status(StatusModel):
    """The observed state of the job."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""
    phase: Phase = Phase.PENDING
    """Summary for display. Use the conditions for decisions."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """Conditions of the job, by type."""
    display: DisplayStatus | None = None
    """Values formatted as text, for the columns of `kubectl get`."""
    run: RunStatus = RunStatus()
    """The current run."""
    schedule: ScheduleStatus | None = None
    """State of `spec.schedule`."""
    poll: PollStatus | None = None
    """State of `spec.data.poll`. Absent: no poll has ended."""
    due_time: Time | None = None
    """When the operator next acts on a run that has ended, although nothing was changed: it deletes the children,
    starts a scheduled run, or polls the data. Absent: nothing is due."""
    newest_run: int = 0
    """Highest number of a run so far. The current run has a lower one if it was reused."""
    history: Annotated[tuple[PastRun, ...], Field(max_length=MAX_HISTORY)] = ()
    """Runs before the current one, oldest first. Their number is limited by `spec.historyLimit`."""

    @property
    def terminal_condition(self) -> Condition | None:
        """The condition that reports the end of the run; None if the run has not ended."""
        held = (entry for entry in self.conditions if entry.type in TERMINAL_CONDITIONS and entry.status == "True")
        return next(held, None)

    def with_run(self, **changes: object) -> Self:
        """Return a copy in which these fields of the current run are changed."""
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    def metrics_of(self, candidate: CandidateName) -> dict[Metric, float]:
        """Return the test metrics of a candidate of the current run; empty if it was not evaluated."""
        found = self.run.candidates.get(candidate)
        return {} if found is None else found.metrics

    def regression_sets_of(self, candidate: CandidateName) -> dict[str, dict[Metric, float]]:
        """Return the metrics of each regression set; empty if the candidate was not evaluated on any."""
        found = self.run.candidates.get(candidate)
        return {} if found is None else found.regression_sets or {}

    def written(self) -> dict[str, Any]:
        """Return the status as it is written to the object, without absent fields."""
        absent = {"run"} if self.run == RunStatus() else set()
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=absent)

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> Self:
        """Parse the status of an object, in the current or an earlier shape. Raises ValidationError."""
        return cls.model_validate(in_current_shape(written or {}))


_RENAMED = {"runHash": "specHash", "chosen": "resolved"}
_DROPPED = frozenset({"evaluation", "failedWith"})
"""`failedWith` was a hash of other fields: compared with one of today, it would start every failed run again."""


def in_current_shape(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a status that an earlier version wrote to the shape of `Status`.

    Earlier versions wrote the fields of the run at the top level, next to its number, `run`.
    """
    if not isinstance(written, Mapping):
        return written
    if not isinstance(written.get("run"), int):
        return _with_batching(written)
    names = {str(field.alias) for field in RunStatus.model_fields.values()}
    run = {_RENAMED.get(name, name): value for name, value in written.items() if _RENAMED.get(name, name) in names}
    run["number"] = written["run"]
    if isinstance(figures := written.get("evaluation"), dict):
        run["candidates"] = {name: {"metrics": metrics} for name, metrics in figures.items()}
    attempts = run.get("attempts")
    if isinstance(attempts, list) and all(isinstance(entry, dict) for entry in attempts):
        run["attempts"] = [_attempt_from_flat(entry) for entry in attempts]
        if attempts and (fewer := attempts[-1].get("fewerNodes")):
            run["nextPlan"] = {"nodes": fewer}
    kept = {name: value for name, value in written.items() if name not in {*names, *_RENAMED, *_DROPPED}}
    return {**kept, "run": run}


def _with_batching(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rename `run.resolved.packing`: a run must still know which value it has chosen."""
    run = written.get("run")
    resolved = run.get("resolved") if isinstance(run, Mapping) else None
    if not isinstance(run, Mapping) or not isinstance(resolved, Mapping) or "packing" not in resolved:
        return written
    kept = {name: value for name, value in resolved.items() if name != "packing"}
    return {**written, "run": {**run, "resolved": {"batching": resolved["packing"], **kept}}}


def _attempt_from_flat(entry: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in entry.items() if name not in {"nodes", "fewerNodes", "forgiven"}}
    if entry.get("nodes"):
        found["plan"] = {"nodes": entry["nodes"]}
    if entry.get("forgiven"):
        found["supersededBySpecChange"] = True
    return found
