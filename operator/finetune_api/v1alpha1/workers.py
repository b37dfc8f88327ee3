"""`spec.workers` and `spec.restart`: where the job runs and how often it may fall."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel, Quantity, matching


class EnvVar(ApiModel):
    """One environment variable of the trainer."""

    name: Annotated[
        str,
        matching(
            r"^[A-Za-z_][A-Za-z0-9_]*$", "a variable's name: letters, digits and _, no digit first", max_length=128
        ),
    ]
    """Name."""

    value: Annotated[str, Field(max_length=4096)] = ""
    """Value."""


class Resources(ApiModel):
    """Requests and limits of one worker pod, as in a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves. `cpu` also sets the threads of a CPU worker."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the worker may not exceed. A job that cannot fit `memory` is refused before it starts."""


class Workers(ApiModel):
    """How many workers, and what each gets."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Worker pods; locally, worker processes."""

    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs, and so training processes, of each worker. 0: one process on the CPU."""

    resources: Resources = Resources()
    """Requests and limits of one worker."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    """More environment for the trainer."""


class Restart(ApiModel):
    """How often training is started again. A restart resumes from the last committed checkpoint."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts after failures of the training itself. Refilled when a new checkpoint is committed."""

    max_disruptions: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Restarts after evictions, preemptions and other losses that the training did not cause."""
