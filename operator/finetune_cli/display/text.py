"""Format numbers, times and curves. Pure."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT, share_text
from finetune_api.v1alpha1 import METRIC_SUPPORT, Metric

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Return `0.4 s`, `41 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
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
    """Return a number with thousands separators, `2,140`; numbers below 10 keep one decimal."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def size(size_bytes: int) -> str:
    """Return `512 B`, `86.7 MiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds_since(then: str, now: datetime) -> float:
    """Return the seconds since an RFC 3339 time; 0 for times in the future, because clocks differ."""
    return max(0.0, (now - datetime.fromisoformat(then)).total_seconds())


def metric_name(metric: Metric) -> str:
    """Return `accuracy`, `macro F1`."""
    return METRIC_SUPPORT[metric].name


def metric_value(metric: Metric, value: float) -> str:
    """Return shares in percent and other metrics with four significant digits."""
    if abs(value) >= OVERFLOW:
        return OVERFLOW_TEXT
    return share_text(value) if METRIC_SUPPORT[metric].is_share else f"{value:.4g}"


def metric_change(metric: Metric, before: float, after: float) -> str:
    """Return `+77.5 points`, `-2.321`, or "" if one of the values overflowed."""
    change = after - before
    if abs(change) >= OVERFLOW:
        return ""
    return f"{100 * change:+.1f} points" if METRIC_SUPPORT[metric].is_share else f"{change:+.4g}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return at most `width` bars, scaled from the smallest to the largest. A bar is the mean of a range of values."""
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * columns
    return "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)
