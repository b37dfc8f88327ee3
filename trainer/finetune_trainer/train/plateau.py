"""Lowers the learning rate when the validation loss stops falling: the schedule ReduceOnPlateau. Pure.

The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau` with mode `min` and its default threshold. That class
is not used: it sets rates on its own, and here they also depend on the warmup, and on a learning rate that may change
between attempts.
"""

from dataclasses import dataclass, replace

from finetune_api.v1alpha1 import ScheduleOptions

from .schedule import resolved_options

_THRESHOLD = 1e-4
"""Share of the lowest loss by which a lower one must differ from it."""


@dataclass
class RateScale:
    """What the learning rates of a schedule are multiplied by."""

    value: float = 1.0


@dataclass(frozen=True)
class PlateauState:
    """Validation losses so far. Saved in every checkpoint, so that counting continues after a restart."""

    lowest: float | None = None
    evaluations_since: int = 0
    """Evaluations without a lower loss, since the lowest one or since the learning rate was lowered."""
    factor: float = 1.0
    """The learning rate as a share of that of the warmup and the peak."""

    def after(self, loss: float, options: ScheduleOptions | None) -> "PlateauState":
        """Return the state after one more evaluation."""
        if self.lowest is None or loss < self.lowest * (1.0 - _THRESHOLD):
            return replace(self, lowest=loss, evaluations_since=0)
        chosen = resolved_options(options)
        count = self.evaluations_since + 1
        if count <= chosen["patience"]:
            return replace(self, evaluations_since=count)
        lowered = max(self.factor * chosen["factor"], chosen["min_learning_rate_ratio"])
        return replace(self, evaluations_since=0, factor=lowered)
