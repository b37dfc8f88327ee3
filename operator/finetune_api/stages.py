"""The stages of a run, one row each: everything about a stage but what it does, which is in its own module."""

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
_OURS = ("finetune_trainer.stages", "finetune_trainer.store.client")
"""Their models take pydantic 0.3 s to build."""


@dataclass(frozen=True)
class StageSpec:
    """One stage."""

    stage: Stage
    phase: Phase
    """Phase of the job while the stage runs."""
    reason: Reason
    """Reason of the conditions while the stage runs."""
    failed_reason: Reason | None
    """Reason of the condition Failed; None: the one of the restart rule that ended the run."""
    noun: str
    """For people: the running stage is shown as `restarting the <noun>`."""
    entry: str
    """`module:function` that a rank runs with a StageContext; it returns the result."""
    result: str = ""
    """Field of the termination message that holds the result; empty: the stage has none."""
    libraries: tuple[str, ...] = (*_TEXT, *_OURS)
    """Modules that the fork server imports before it forks a rank, in an order that lets the largest fail first."""
    loads_model: bool = True
    """The pod needs memory for the model's weights."""
    saves_state: bool = False
    """It has all workers, a plan for each attempt, and state to save when it is stopped. The others have one process,
    which ends at once and starts again from the beginning."""


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
            "transformers.trainer",
            "deepspeed",
            "accelerate",
            *_OURS,
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
)

STAGES: dict[Stage, StageSpec] = {row.stage: row for row in _ROWS}
"""The table, in the order in which a run passes through the stages."""


def stage_order(stage: Stage) -> int:
    """Position of a stage in a run, from 0."""
    return list(STAGES).index(stage)


def first_stage() -> Stage:
    """The stage that a run starts with."""
    return next(iter(STAGES))


def stage_after(stage: Stage) -> Stage | None:
    """The stage that follows; None after the last one."""
    following = list(STAGES)[stage_order(stage) + 1 :]
    return following[0] if following else None
