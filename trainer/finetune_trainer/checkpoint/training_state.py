"""What is saved."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingState:
    """What a save is of: a training after an optimizer step."""

    step: int
    engine: Any
    """DeepSpeed's."""
    small_state: dict[str, Any]
    """The Trainer's own, JSON values, the same on every rank; rank 0's is stored."""
    best_step: int | None = None
    """Of the best state so far, where that is judged."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the validation split after this step; empty where it was not evaluated."""
