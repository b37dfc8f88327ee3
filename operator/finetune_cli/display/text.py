"""Numbers, times and curves as people read them. Pure."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT
from finetune_api.v1alpha1 import METRIC_SUPPORT, Metric

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 0.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(value: float) -> str:
    """Thousands apart: `2,140`; small figures keep a decimal."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def size(size_bytes: int) -> str:
    """`512 B`, `86.7 MiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds_since(then: str, now: datetime) -> float:
    """From an RFC 3339 time; never negative, because clocks differ."""
    return max(0.0, (now - datetime.fromisoformat(then)).total_seconds())


def metric_name(metric: Metric) -> str:
    """`accuracy`, `macro F1`."""
    return METRIC_SUPPORT[metric].name


def metric_value(metric: Metric, value: float) -> str:
    """Shares in percent, others with four significant digits."""
    if abs(value) >= OVERFLOW:
        return OVERFLOW_TEXT
    return f"{100 * value:.1f} %" if METRIC_SUPPORT[metric].is_share else f"{value:.4g}"


def metric_change(metric: Metric, before: float, after: float) -> str:
    """`+77.5 points`, `-2.321`."""
    change = after - before
    if abs(change) >= OVERFLOW:
        return ""  # no difference from a value that is not known
    return f"{100 * change:+.1f} points" if METRIC_SUPPORT[metric].is_share else f"{change:+.4g}"


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` bars between the smallest and the largest value; each is the mean of its share of the values."""
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * columns
    return "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)
