"""Line charts and histograms as SVG that uses the colors of the page. Pure; drawn by matplotlib without a backend.

matplotlib does not support CSS variables. It draws with placeholder colors, which are then replaced by `var(--name)`,
so one chart works in light mode, in dark mode and in print.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

_COLORS = {
    "muted": "#0a0001",
    "rule": "#0a0002",
    "blue": "#0a0003",
    "orange": "#0a0004",
    "red": "#0a0005",
    "green": "#0a0006",
}
"""CSS variable of the page -> placeholder."""

LINE_COLORS = ("blue", "orange", "green")
"""Colors of the lines of one chart; red is for marks."""

_SIZE_INCHES = (4.8, 2.3)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "axes.edgecolor": _COLORS["rule"],
    "axes.labelcolor": _COLORS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _COLORS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _COLORS["muted"],
    "ytick.color": _COLORS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _COLORS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": True,
}
_MOST_POINTS = 400
"""More points cannot be distinguished on a page and would only make the file larger."""

_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "blue"
    dots: bool = False
    """Few points, measured individually."""
    smooth: bool = False
    """Also draw the moving mean, and draw the points themselves faintly."""
    dashed: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[tuple[float, str]] = (),
    phases: Sequence[tuple[float, str]] = (),
    x_label: str = "optimizer step",
    percent: bool = False,
    log_x: bool = False,
) -> Markup:
    """A chart of one or more lines; `marks` are labeled vertical lines, `phases` thin ones with labels below. `log_x`:
    the x axis is logarithmic."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        for line in series:
            _draw(axes, line)
        for position, text in marks:
            _mark(axes, position, text, color="red", at_top=True)
        for position, text in phases:
            _mark(axes, position, text, color="muted", at_top=False)
        axes.set_xlabel(x_label)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}" if percent else tick_text(value)))
        if len(series) > 1:
            axes.legend(fontsize=8, handlelength=1.4, borderaxespad=0.2)
        return _svg(figure, title)


def _mark(axes: Any, position: float, text: str, *, color: str, at_top: bool) -> None:
    axes.axvline(position, color=_COLORS[color], linewidth=1 if at_top else 0.6, linestyle=(0, (3, 2)))
    axes.annotate(
        text,
        (position, 1.0 if at_top else 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2 if at_top else 2),
        textcoords="offset points",
        va="top" if at_top else "bottom",
        fontsize=7.5,
        color=_COLORS[color],
    )


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], *, x_label: str) -> Markup:
    """One bar between each two neighbouring `edges`; `counts` is one shorter."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        axes.bar(range(len(counts)), counts, width=0.86, color=_COLORS["blue"], alpha=0.85, linewidth=0)
        step = max(1, len(counts) // 8)
        places = range(0, len(edges), step)
        axes.set_xticks([place - 0.5 for place in places], [f"{edges[place]:g}" for place in places])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel(x_label)
        return _svg(figure, title)


def downsampled(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over neighbours, so that peaks remain visible."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def moving_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The mean of each point and the `window - 1` points before it."""
    found = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - window + 1) : index + 1]
        found.append((x, sum(y for _, y in near) / len(near)))
    return found


def _draw(axes: Any, line: Series) -> None:
    color = _COLORS[line.color]
    points = downsampled(line.points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    style = "--" if line.dashed else "-"
    if line.dots or len(points) == 1:
        axes.plot(xs, ys, color=color, linestyle=style, marker="o", markersize=3.5, label=line.name)
    elif line.smooth and len(points) >= 20:
        axes.plot(xs, ys, color=color, alpha=0.28, linewidth=1)
        mean = moving_mean(points, max(3, len(points) // 20))
        axes.plot([x for x, _ in mean], [y for _, y in mean], color=color, linestyle=style, label=line.name)
    else:
        axes.plot(xs, ys, color=color, linestyle=style, label=line.name)


def _figure() -> tuple[Any, Any]:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    return figure, figure.add_subplot()


def tick_text(value: float) -> str:
    """Format an axis label: `0.5`, `1.5e-4`."""
    if 1e-2 <= abs(value) < 1e6 or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline element: without prolog, fixed size, fonts or styles."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"\n\s*", "\n", body)
    for name, placeholder in _COLORS.items():
        body = body.replace(placeholder, f"var(--{name})")
    width, height = (72 * inches for inches in _SIZE_INCHES)
    start = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(re.sub(r"<svg[^>]*>", start, body, count=1))
