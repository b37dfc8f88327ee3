"""The properties of the stages of a run. Their implementation is in the trainer."""

from dataclasses import dataclass

from .constants import Phase, Reason, Stage

_TEXT = (
    "numpy",
    "safetensors",
    "torch",
    "huggingface_hub",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "boto3.s3.transfer",
    "jinja2",
)
_MODELS = ("safetensors.torch", "transformers.modeling_utils", "peft")
_OURS = ("finetune_trainer.rank_main", "finetune_trainer.store.client")
"""Importing them takes 0.3 s, in which pydantic builds its models."""


@dataclass(frozen=True)
class StageSpec:
    """One stage."""

    stage: Stage
    phase: Phase
    """Phase of the job while the stage runs."""
    reason: Reason
    """Reason of the conditions while the stage runs."""
    failed_reason: Reason | None
    """Reason of the condition Failed; None: the reason of the restart rule that ended the run."""
    noun: str
    """Name of the stage in messages, such as `restarting the <noun>`."""
    entry: str
    """`module:function` that a rank runs with a StageContext; it returns the result."""
    result: str = ""
    """Field of the termination message that holds the result; empty: the stage has none."""
    libraries: tuple[str, ...] = (*_TEXT, *_OURS)
    """Modules that the fork server imports, in this order, before it forks a rank."""
    timeout_seconds: int | None = None
    """Time after which its Job fails, including waiting. None: no limit."""
    is_part_of_run: bool = True
    """False: it does not follow the stage before it; the operator starts it after a run has ended."""
    memory: str = "2Gi"
    """Memory request of a stage that does not load the model. The prepare stage streams the data
    (docs/benchmarks.md)."""
    loads_model: bool = True
    """Whether the pod needs memory for the weights of the model."""
    saves_state: bool = False
    """True: the stage has all workers, a plan for each attempt, and saves a checkpoint when it is stopped. False: it
    has one process, which ends at once when it is stopped and starts from the beginning."""


_ROWS = (
    StageSpec(
        Stage.PREPARE,
        Phase.PREPARING,
        Reason.PREPARING,
        Reason.PREPARE_FAILED,
        "preparation",
        entry="finetune_trainer.data.prepare:run",
        result="prepared",
        libraries=(*_TEXT, "transformers.modeling_utils", "pyarrow.parquet", *_OURS),
        loads_model=False,
    ),
    StageSpec(
        Stage.TRAIN,
        Phase.TRAINING,
        Reason.TRAINING,
        None,
        "training",
        entry="finetune_trainer.train.stage:run",
        result="trained",
        libraries=(
            *_TEXT,
            *_MODELS,
            "torch.distributed",
            "torch.utils.data",
            "transformers.integrations.deepspeed",
            "deepspeed",
            "deepspeed.module_inject.auto_ep_layer",  # imported by every engine
            *_OURS,
            "finetune_trainer.checkpoint.upload.standby",
        ),
        saves_state=True,
    ),
    StageSpec(
        Stage.EVALUATE,
        Phase.EVALUATING,
        Reason.EVALUATING,
        Reason.EVALUATE_FAILED,
        "evaluation",
        entry="finetune_trainer.evaluate.stage:run",
        result="evaluated",
        libraries=(
            *_TEXT,
            *_MODELS,
            "scipy.stats",
            "pyarrow.parquet",
            "matplotlib.figure",
            "ruamel.yaml",
            *_OURS,
        ),
    ),
    StageSpec(
        Stage.POLL,
        Phase.SUCCEEDED,
        Reason.SUCCEEDED,
        None,
        "poll",
        entry="finetune_trainer.data.poll:run",
        result="polled",
        libraries=("boto3.s3.transfer", "huggingface_hub", *_OURS),
        timeout_seconds=600,
        is_part_of_run=False,
        memory="256Mi",
        loads_model=False,
    ),
)

STAGES: dict[Stage, StageSpec] = {row.stage: row for row in _ROWS}
"""Stages in the order of a run, and after them those that are not part of one."""


def run_stages() -> tuple[Stage, ...]:
    """The stages of a run, in order."""
    return tuple(stage for stage, row in STAGES.items() if row.is_part_of_run)


def stage_order(stage: Stage) -> int:
    """Position of a stage in the table, from 0: later stages of a run have higher ones."""
    return list(STAGES).index(stage)


def first_stage() -> Stage:
    """The stage that a run starts with."""
    return run_stages()[0]


def stage_after(stage: Stage) -> Stage | None:
    """The stage that follows; None after the last one."""
    following = [other for other in run_stages() if stage_order(other) > stage_order(stage)]
    return following[0] if following else None
