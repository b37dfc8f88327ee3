"""Early stopping as a value: what has been seen, what is best, how long ago. Pure."""

from dataclasses import dataclass, replace

from finetune_api.v1alpha1 import EarlyStopping, Metric

LOWER_IS_BETTER = frozenset({Metric.LOSS, Metric.PERPLEXITY})


@dataclass(frozen=True)
class BestState:
    """The best evaluation so far. It travels in every checkpoint, so a restart goes on counting."""

    value: float | None = None
    step: int | None = None
    evaluations_since: int = 0

    def improved_by(self, value: float, rule: EarlyStopping) -> bool:
        """Whether `value` is better than the best by more than `rule.min_delta`. The first value always is."""
        if self.value is None:
            return True
        gain = self.value - value if rule.metric in LOWER_IS_BETTER else value - self.value
        return gain > rule.min_delta

    def after(self, value: float, step: int, rule: EarlyStopping) -> "BestState":
        """The state after one more evaluation."""
        if self.improved_by(value, rule):
            return BestState(value=value, step=step)
        return replace(self, evaluations_since=self.evaluations_since + 1)

    def exhausted(self, rule: EarlyStopping) -> bool:
        """Whether the patience is used up."""
        return self.evaluations_since >= rule.patience
