"""Figures before and after training, side by side and as people read them. Pure."""

import sys
from collections.abc import Mapping

from .trainer_config import Message
from .v1alpha1 import Metric

LOWER_IS_BETTER = frozenset({Metric.LOSS, Metric.PERPLEXITY})
SHARES = frozenset({Metric.ACCURACY, Metric.MACRO_F1})
"""Metrics between 0 and 1, shown in percent."""
_NAMES = {
    Metric.LOSS: "Loss",
    Metric.PERPLEXITY: "Perplexity",
    Metric.ACCURACY: "Accuracy",
    Metric.MACRO_F1: "Macro F1",
}


OVERFLOW = sys.float_info.max
"""Stands for a perplexity that no float can hold: the exponential of a loss above 709.78 nats per token."""
OVERFLOW_TEXT = "overflow (> 1e308)"


class MetricDelta(Message):
    """One figure of the test split, before and after."""

    metric: Metric
    baseline: float | None = None
    """Absent: the base model was not evaluated."""
    tuned: float
    delta: float | None = None
    """tuned - baseline, in the metric's own unit."""
    improved: bool | None = None
    """Whether the change is for the better; absent where there is no baseline or no change."""


def compare_metrics(baseline: Mapping[Metric, float], tuned: Mapping[Metric, float]) -> tuple[MetricDelta, ...]:
    """One row for each figure of the tuned model, in the order of `Metric`."""
    rows = []
    for metric in Metric:
        if metric not in tuned:
            continue
        before, after = baseline.get(metric), tuned[metric]
        if before is None:
            rows.append(MetricDelta(metric=metric, tuned=after))
            continue
        delta = after - before
        improved = None if delta == 0 else (delta < 0) == (metric in LOWER_IS_BETTER)
        rows.append(MetricDelta(metric=metric, baseline=before, tuned=after, delta=delta, improved=improved))
    return tuple(rows)


def metric_name(metric: Metric) -> str:
    """`MacroF1` -> `Macro F1`."""
    return _NAMES[metric]


def metric_text(metric: Metric, value: float) -> str:
    """`93.3 %` for a share, else the number with three significant digits."""
    return f"{value:.1%}".replace("%", " %") if metric in SHARES else number_text(value)


def delta_text(metric: Metric, delta: float) -> str:
    """`+12.5 points` for a share (percentage points), else the signed number."""
    if metric in SHARES:
        return f"{100 * delta:+.1f} points"
    return f"{'+' if delta >= 0 else '-'}{number_text(abs(delta))}"


def number_text(value: float) -> str:
    """Three significant digits without an exponent where that is readable: `0.0123`, `4.57`, `1,235`, `1.2e+08`."""
    size = abs(value)
    if size >= OVERFLOW:
        return OVERFLOW_TEXT
    if size >= 1e7 or 0 < size < 1e-4:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if size >= 10 else 3 if size >= 0.1 else 4}f}" if size else "0"
