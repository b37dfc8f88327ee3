"""Names and labels of children."""

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.trainer_config import TrainerConfig


def child_name(job: str, run: int, stage: Stage, attempt: int) -> str:
    """`quickstart-r1-train-a2`: the Job and ConfigMap of one attempt at one stage.

    With the longest job name (40), run and attempt of four digits and a pod index of three, a train pod's
    name has 62 characters, under the 63 of a DNS label.
    """
    return f"{job}-r{run}-{stage}-a{attempt}"


def service_name(child: str) -> str:
    """The Service of an attempt, which gives its pods DNS names. Unlike those of Jobs, names of Services must not begin
    with a digit.

    Prefix and suffix are added so that it differs from names of other children, which end in `-a<attempt>`. At most 62
    characters.
    """
    return child if child[0].isalpha() else f"s-{child}-s"


def child_labels(config: TrainerConfig) -> dict[str, str]:
    """Labels of every child and pod of a stage."""
    return {
        constants.LABEL_MANAGED_BY: constants.MANAGED_BY,
        constants.LABEL_JOB: config.job.name,
        constants.LABEL_JOB_UID: config.job.uid,
        constants.LABEL_RUN: str(config.run),
        constants.LABEL_STAGE: str(config.stage),
        constants.LABEL_ATTEMPT: str(config.attempt),
    }


def name_of(config: TrainerConfig) -> str:
    """Name of the stage's children."""
    return child_name(config.job.name, config.run, config.stage, config.attempt)


def has_service(config: TrainerConfig) -> bool:
    """Whether the stage has a Service: several pods need DNS names to find each other."""
    return config.stage is Stage.TRAIN and config.world.nodes > 1


def first_host(config: TrainerConfig) -> str:
    """DNS name of rank 0's pod: `<job>-0.<service>`."""
    name = name_of(config)
    return f"{name}-0.{service_name(name)}"
