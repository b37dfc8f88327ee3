"""`status`: what the operator has seen and done. Written by the operator alone."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..constants import ConditionType, Phase, Reason, Stage
from .base import StatusModel
from .training import Metric

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC."""

MAX_WARNINGS = 16
MAX_WARNING_LENGTH = 1024
"""Characters of one warning."""


class Condition(StatusModel):
    """One aspect of the job's state."""

    type: ConditionType
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Reason
    """Why, in one word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: int = 0
    """Generation of the spec that this speaks of."""


class ProgressStatus(StatusModel):
    """How far the current stage is."""

    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    percent: int = 0
    """Whole percent of the run's steps."""
    epoch: float = 0.0
    """Passes over the training split."""
    loss: float | None = None
    """Training loss, the mean of the last ten steps that were logged."""
    learning_rate: float | None = None
    """Learning rate last logged."""
    tokens_per_second: float | None = None
    """Tokens without padding, over all workers."""
    step_seconds: float | None = None
    """Recent mean time of an optimizer step."""
    eta_seconds: int | None = None
    """Time to the last step, from the recent step time."""
    checkpoint_every_steps: int | None = None
    """Optimizer steps from one save to the next, derived from `checkpoint.maxLostWork`."""
    checkpoint_late: str | None = None
    """Why a crash would now cost more than the spec allows. Absent: it would not."""


class CheckpointStatus(StatusModel):
    """The last committed checkpoint."""

    uri: str
    """Its manifest."""
    step: int
    """Optimizer step."""
    time: Time
    """When it was committed."""
    save_seconds: float | None = None
    """From the beginning of the save to its commit. Determines the grace period of the pods."""


class FailureStatus(StatusModel):
    """Why the job, or its last attempt, failed."""

    failure_class: Annotated[str, Field(alias="class")]
    """Exit class, such as BadData or OutOfMemory."""
    stage: str
    """Stage that failed."""
    attempt: int = 0
    """Which attempt at it."""
    rank: int | None = None
    """First rank that failed."""
    pod: str = ""
    """Its pod."""
    node: str = ""
    """The node that the pod ran on."""
    exit_code: int = 0
    """Its exit status."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """The error and its last lines."""
    advice: Annotated[str, Field(max_length=1024)] = ""
    """What to do about it."""


class Outcome(StrEnum):
    """How an attempt ended, as far as the next one is concerned."""

    SUCCEEDED = "Succeeded"
    STOPPED = "Stopped"
    PERMANENT = "Permanent"
    RETRYABLE = "Retryable"
    DISRUPTION = "Disruption"
    REJECTED = "Rejected"


class AttemptPlan(StatusModel):
    """What a training attempt is started with."""

    nodes: int
    """Worker pods."""
    micro_batch_size: int | None = None
    """Examples per process and forward pass."""
    gradient_accumulation_steps: int | None = None
    """Forward passes per optimizer step."""
    micro_batch_limit: int | None = None
    """Most examples per process and forward pass, where a restart rule lowered it. Holds until the spec changes."""
    reason: Annotated[str, Field(max_length=256)] = ""
    """Why the plan differs from what the spec asks for; empty: it does not."""


class AttemptStatus(StatusModel):
    """One attempt at a stage."""

    stage: Stage
    """Stage that was attempted."""
    number: int
    """Counted from 1 within the run and the stage."""
    job_name: str
    """Its Kubernetes Job."""
    start_time: Time
    """When its Job was created."""
    plan: AttemptPlan | None = None
    """What the attempt was started with. Absent: prepare and evaluate attempts, which have one pod."""
    spec_hash: str = ""
    """Hash of the spec fields that the attempt was started with (scope Attempt)."""
    evaluation_spec_hash: str = ""
    """Evaluate attempts: hash of the spec fields that decide the evaluation and the exported formats."""
    first_step_time: Time | None = None
    """When its first optimizer step was done."""
    known_checkpoint_step: int | None = None
    """Of a training: the newest step that any attempt before it was known to have saved. Absent: none."""
    end_time: Time | None = None
    """When its last pod had ended."""
    resumed_from_step: int | None = None
    """Step of the checkpoint it started from. Absent: from the base model, or not yet known."""
    last_step: int | None = None
    """Last optimizer step seen."""
    outcome: Outcome | None = None
    """How it ended. Absent: it has not."""
    reason: str = ""
    """Exit class of a failure, such as OutOfMemory or Signal9."""
    exit_code: int | None = None
    """Exit status of the pod that failed first. Absent: it left none, or did not fail."""
    message: Annotated[str, Field(max_length=256)] = ""
    """First line of the error of a failure."""
    superseded_by_spec_change: bool | None = None
    """True: the run failed with this attempt and was continued after its spec was changed."""


class CandidateName(StrEnum):
    """A model that was evaluated on the test split."""

    BASELINE = "baseline"
    """The base model."""
    TUNED = "tuned"
    """The fine-tuned model."""


class CandidateStatus(StatusModel):
    """One model that was evaluated on the test split."""

    metrics: dict[Metric, float] = {}
    """Metrics of the test split."""


class ArtifactStatus(StatusModel):
    """The exported model."""

    uri: str
    """Folder in Hugging Face layout."""
    digest: str
    """SHA-256 over the files' names and contents."""
    report: str = ""
    """The HTML report."""


class ResolvedStatus(StatusModel):
    """Values of the fields that the user left out, and facts about model and data."""

    task: str = ""
    """Head and loss."""
    format: str = ""
    """Data format."""
    dtype: str = ""
    """Floating-point type."""
    zero_stage: int | None = None
    """ZeRO stage, of the last attempt that has trained."""
    micro_batch_size: int | None = None
    """Examples per process and forward pass."""
    gradient_accumulation_steps: int | None = None
    """Forward passes per optimizer step."""
    packing: str = ""
    """How examples share a batch."""
    dataset: str = ""
    """Address of the prepared data set."""
    dataset_digest: str = ""
    """Its digest."""
    model_digest: str = ""
    """Digest of the base model."""
    parameters: int | None = None
    """Parameters of the base model."""
    test_tokens: int | None = None
    """Tokens of the test split."""
    model_revision: str = ""
    """Commit of the hub that the revision of the base model meant when the run was prepared."""
    requested_revision: str | None = None
    """That revision, as spec.model.uri named it: empty for the default branch. Absent: a model from elsewhere."""


class RunStatus(StatusModel):
    """One run: everything from the prepared data to the evaluated model."""

    number: int = 0
    """Number of the run, counted from 1. 0: no run has started."""
    spec_hash: str = ""
    """Hash of the spec fields that decide the result (scopes Data and Run). Another hash is another run."""
    failed_spec_hash: str | None = None
    """Of a failed run: hash of the other spec fields that may make it succeed. With another hash the run continues."""
    stage: str = ""
    """Stage that is running or ran last."""
    attempt: int = 0
    """Attempt of that stage that is running or ran last."""
    progress: ProgressStatus | None = None
    """How far the training is."""
    last_checkpoint: CheckpointStatus | None = None
    """The last committed checkpoint."""
    warnings: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_WARNING_LENGTH)], ...], Field(max_length=MAX_WARNINGS)
    ] = ()
    """Warnings of the stages, each once; the last sixteen."""
    restarts: int = 0
    """Failures charged to `restart.maxRestarts`: of the stage that failed last, since its last new checkpoint."""
    disruptions: int = 0
    """Disruptions of the run."""
    resolved: ResolvedStatus | None = None
    """Values of the fields that the user left out, and facts about model and data."""
    candidates: dict[CandidateName, CandidateStatus] = {}
    """Models that were evaluated on the test split."""
    artifact: ArtifactStatus | None = None
    """The exported model."""
    failure: FailureStatus | None = None
    """Why the run, or its last attempt, failed."""
    attempts: Annotated[tuple[AttemptStatus, ...], Field(max_length=10)] = ()
    """The last ten attempts at the stages of the run, oldest first."""
    next_plan: AttemptPlan | None = None
    """Plan of the next training attempt, where it was decided before the running attempt is stopped for it."""
    start_time: Time | None = None
    """When the run started."""
    suspended_since: Time | None = None
    """Since when `spec.suspend` has been set. Absent: it is not."""
    suspended_seconds: float | None = None
    """How long the run was suspended before. Suspended time does not count for the deadline."""
    completion_time: Time | None = None
    """When the run ended."""
    children_removed: bool | None = None
    """True: the run is complete, and its Jobs and pods were removed after `spec.ttlSecondsAfterFinished`."""


class PastRun(StatusModel):
    """Summary of a run that a later one has replaced."""

    number: int
    """Number of the run."""
    spec_hash: str = ""
    """Hash of the spec fields that decided its result."""
    result: Literal["Succeeded", "Failed", "Superseded"]
    """How it ended. Superseded: the spec changed while it was running."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Reason of a failure."""
    message: Annotated[str, Field(max_length=256)] = ""
    """First line of the message of a failure."""
    start_time: Time | None = None
    """When the run started."""
    completion_time: Time | None = None
    """When the run ended. Absent: it was superseded while it was running."""
    step: int | None = None
    """Last optimizer step."""
    candidates: dict[CandidateName, CandidateStatus] = {}
    """Models that were evaluated on the test split."""
    artifact: ArtifactStatus | None = None
    """The exported model, which stays in object storage."""


class DisplayStatus(StatusModel):
    """Figures as text, for the columns of `kubectl get`."""

    progress: str = ""
    """Share of the optimizer steps that are done, such as `27%`."""
    loss: str = ""
    """Training loss with four significant digits."""
    eta: str = ""
    """Time to the last step, such as `2m14s`."""


class Status(StatusModel):
    """What the operator has seen and done."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""
    phase: Phase = Phase.PENDING
    """A printed summary; use the conditions for decisions."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """State in Kubernetes' own form."""
    display: DisplayStatus | None = None
    """Figures as text, for the columns of `kubectl get`."""
    run: RunStatus = RunStatus()
    """The current run."""
    history: Annotated[tuple[PastRun, ...], Field(max_length=10)] = ()
    """The last ten runs before the current one, oldest first."""

    def with_run(self, **changes: object) -> Self:
        """A copy in which these fields of the current run are changed."""
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    def metrics_of(self, candidate: CandidateName) -> dict[Metric, float]:
        """Metrics of the test split of a candidate of the current run; empty where it was not evaluated."""
        found = self.run.candidates.get(candidate)
        return {} if found is None else found.metrics

    def written(self) -> dict[str, Any]:
        """As it is written to the object: without what is absent."""
        absent = {"run"} if self.run == RunStatus() else set()
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=absent)

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> Self:
        """The status of an object, in whichever shape it was written. Raises ValidationError."""
        return cls.model_validate(in_current_shape(written or {}))


_RENAMED = {"runHash": "specHash", "chosen": "resolved"}
_DROPPED = frozenset({"evaluation", "failedWith"})
"""`failedWith` was a hash of other fields: compared with one of today, it would start every failed run again."""


def in_current_shape(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """A status as it was written, in the shape of `Status`.

    Earlier versions wrote the fields of the run beside its number, `run`.
    """
    if not isinstance(written, Mapping) or not isinstance(written.get("run"), int):
        return written
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


def _attempt_from_flat(entry: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in entry.items() if name not in {"nodes", "fewerNodes", "forgiven"}}
    if entry.get("nodes"):
        found["plan"] = {"nodes": entry["nodes"]}
    if entry.get("forgiven"):
        found["supersededBySpecChange"] = True
    return found
