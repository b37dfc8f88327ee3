"""`training.json`, which the train stage writes. Importable without torch and numpy."""

import sys
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

_MAX_STEP = 2**53
"""Larger numbers are no steps, and not exact in JSON."""


class TrainingSpeed(BaseModel):
    """Speed of the last steps of a training, from which later runs are forecast."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tokens_per_second: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
    """Without padding, over all processes."""
    processes: PositiveInt
    on_gpus: bool = False
    peak_memory_bytes: int = 0
    """Of rank 0."""


class TrainingPhase(BaseModel):
    """A phase of the training, with another set of trained parameters than the one before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    first_step: Annotated[int, Field(ge=1, le=_MAX_STEP)]
    trained_parameters: Annotated[int, Field(ge=0)]


class TrainingLog(BaseModel):
    """`training.json`, written by the train stage: the log of all attempts, without repeated steps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    log: tuple[dict[str, Any], ...] = ()
    attempt: int = 0
    phase_seconds: dict[str, float] = {}
    steps: int = 0
    tokens: int = 0
    trained_parameters: int | None = None
    """Parameters that are trained: all, or those of the adapter. Absent: written by an older trainer."""
    phases: tuple[TrainingPhase, ...] = ()
    """Phases that have begun, with `gradualUnfreezing`. Empty: the same parameters in all steps."""
    warnings: tuple[str, ...] = ()
    speed: TrainingSpeed | None = None
    """Absent: written by an older trainer, or the last attempt made no step."""

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every entry that has a finite `name`, in order."""
        return [
            (int(entry["step"]), float(entry[name]))
            for entry in self.log
            if _is_number(entry.get("step")) and 0 <= entry["step"] <= _MAX_STEP and _is_number(entry.get(name))
        ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
