"""The comparison of runs as one self-contained HTML file, without scripts or network access. Pure.

All texts from storage are escaped by Jinja. Lines of charts are named by the labels of the runs, because matplotlib
would interpret other texts as formulas.
"""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from finetune_api.comparison import metric_name, metric_text
from finetune_api.v1alpha1 import METRIC_SUPPORT, Metric

from .charts import Series, line_chart
from .pages import page_environment
from .run_comparison import RunComparison, RunSummary, curve_title

_COLORS = ("blue", "orange", "green", "red")
_SHARES = frozenset(f"eval_{metric.key}" for metric in Metric if METRIC_SUPPORT[metric].is_share)


def render_comparison(comparison: RunComparison) -> str:
    """The HTML page as text."""
    return page_environment().get_template("comparison.html.j2").render(shown_differences(comparison))


def shown_differences(comparison: RunComparison) -> dict[str, Any]:
    """The arguments of the template `differences.html.j2`."""
    return {
        "comparison": comparison,
        "charts": [(curve_title(name), _chart(name, comparison.runs)) for name in comparison.curves],
        "metrics": [(metric_name(Metric(name)), name) for name in comparison.metrics],
        "text": lambda name, value: metric_text(Metric(name), value),
    }


def _chart(name: str, runs: Sequence[RunSummary]) -> Markup:
    """One line for each run that has the curve: four colors, then dashed in the same colors."""
    series = [
        Series(
            run.label,
            run.curves[name],
            _COLORS[index % len(_COLORS)],
            dots=name.startswith("eval_"),
            smooth=name in {"loss", "grad_norm"},
            dashed=index >= len(_COLORS),
        )
        for index, run in enumerate(runs)
        if name in run.curves
    ]
    return line_chart(curve_title(name), series, percent=name in _SHARES)
