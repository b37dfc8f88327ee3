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
)

STAGES: dict[Stage, StageSpec] = {row.stage: row for row in _ROWS}
"""Stages in the order of a run."""


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
