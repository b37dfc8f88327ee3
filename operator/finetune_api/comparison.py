"""Compare metrics before and after training, and format them. Pure."""

import sys
from collections.abc import Mapping

from .trainer_config import Message
from .v1alpha1 import METRIC_SUPPORT, Metric

OVERFLOW = sys.float_info.max
"""Placeholder for a perplexity that exceeds the range of a float: the exponential of a loss above 709.78 nats per
token."""
OVERFLOW_TEXT = "overflow (> 1e308)"


class MetricDelta(Message):
    """A metric of the test split before and after training."""

    metric: Metric
    baseline: float | None = None
    """Absent: the base model was not evaluated."""
    tuned: float
    delta: float | None = None
    """tuned - baseline, in the metric's own unit."""
    improved: bool | None = None
    """Whether the metric improved. Absent without a baseline or without a change."""


def compare_metrics(baseline: Mapping[Metric, float], tuned: Mapping[Metric, float]) -> tuple[MetricDelta, ...]:
    """Return one row for each metric of the tuned model, in the order of `Metric`."""
    rows = []
    for metric in Metric:
        if metric not in tuned:
            continue
        before, after = baseline.get(metric), tuned[metric]
        if before is None:
            rows.append(MetricDelta(metric=metric, tuned=after))
            continue
        delta = after - before
        improved = None if delta == 0 else (delta < 0) == METRIC_SUPPORT[metric].lower_is_better
        rows.append(MetricDelta(metric=metric, baseline=before, tuned=after, delta=delta, improved=improved))
    return tuple(rows)


def metric_name(metric: Metric) -> str:
    """Name at the beginning of a sentence: `Macro F1`."""
    name = METRIC_SUPPORT[metric].name
    return name[0].upper() + name[1:]


def metric_text(metric: Metric, value: float) -> str:
    """`93.3 %` for a share, otherwise the number with three significant digits."""
    return share_text(value) if METRIC_SUPPORT[metric].is_share else number_text(value)


def share_text(value: float) -> str:
    """`93.3 %`."""
    return f"{value:.1%}".replace("%", " %")


def delta_text(metric: Metric, delta: float) -> str:
    """`+12.5 points` for a share (percentage points), otherwise the signed number."""
    if METRIC_SUPPORT[metric].is_share:
        return f"{100 * delta:+.1f} points"
    return f"{'+' if delta >= 0 else '-'}{number_text(abs(delta))}"


def number_text(value: float) -> str:
    """Format with three significant digits, without an exponent for common sizes: `0.0123`, `4.57`, `1,235`,
    `1.2e+08`."""
    size = abs(value)
    if size >= OVERFLOW:
        return OVERFLOW_TEXT
    if size >= 1e7 or 0 < size < 1e-4:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if size >= 10 else 3 if size >= 0.1 else 4}f}" if size else "0"
