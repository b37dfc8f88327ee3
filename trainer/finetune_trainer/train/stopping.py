"""State and rule of early stopping. Pure."""

from dataclasses import dataclass, replace

from finetune_api.v1alpha1 import METRIC_SUPPORT, EarlyStopping


@dataclass(frozen=True)
class BestState:
    """The best evaluation so far. Saved in every checkpoint, so that counting continues after a restart."""

    value: float | None = None
    step: int | None = None
    evaluations_since: int = 0

    def improved_by(self, value: float, rule: EarlyStopping) -> bool:
        """Whether `value` is better than the best one by more than `rule.min_delta`. True for the first value."""
        if self.value is None:
            return True
        gain = self.value - value if METRIC_SUPPORT[rule.metric].lower_is_better else value - self.value
        return gain > rule.min_delta

    def after(self, value: float, step: int, rule: EarlyStopping) -> "BestState":
        """The state after one more evaluation."""
        if self.improved_by(value, rule):
            return BestState(value=value, step=step)
        return replace(self, evaluations_since=self.evaluations_since + 1)

    def exhausted(self, rule: EarlyStopping) -> bool:
        """Whether the number of evaluations without improvement has reached the patience."""
        return self.evaluations_since >= rule.patience
