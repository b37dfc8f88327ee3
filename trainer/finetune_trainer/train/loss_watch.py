"""Detects a training whose validation loss rises far above the loss it started from, but stays finite. Pure.

Which learning rate makes a loss infinite depends on the processor and the precision: the same job may end with NaN on
one machine and finish on another with a model that is worse than the base model.
"""

from dataclasses import dataclass, replace

FACTOR = 2.0
"""A validation loss above this multiple of the first training loss is far above its start."""
PATIENCE = 2
"""Consecutive evaluations that must agree; the last evaluation of a run decides alone."""


@dataclass(frozen=True)
class LossWatch:
    """Losses seen so far. Saved in every checkpoint, so that counting continues after a restart."""

    start: float | None = None
    """Training loss of the first step."""
    high: int = 0
    """Consecutive evaluations far above the start, up to the newest."""

    def started_at(self, loss: float) -> "LossWatch":
        """Return the state with the first training loss, unless it is set already."""
        return self if self.start is not None else replace(self, start=loss)

    def after(self, validation_loss: float) -> "LossWatch":
        """Return the state after one more evaluation."""
        is_high = self.start is not None and validation_loss > FACTOR * self.start
        return replace(self, high=self.high + 1 if is_high else 0)

    def warning(self, *, is_last: bool, learning_rate: float) -> str:
        """Return a warning, or an empty string. `is_last`: no evaluation follows."""
        if self.high < (1 if is_last else PATIENCE):
            return ""
        return (
            f"the validation loss is more than {FACTOR:g} times the loss at the start of the training "
            f"({self.start:.4g}): the training diverges; lower spec.training.learningRate (now {learning_rate:g}), or "
            "add spec.training.warmup"
        )
