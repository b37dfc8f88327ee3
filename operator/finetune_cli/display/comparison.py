"""Format a comparison of runs for a terminal of 80 columns. Pure."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from finetune_api.v1alpha1 import Metric

from ..terminal import printable
from .table import table_lines
from .text import duration, metric_name, metric_value

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.evaluate.run_comparison import RunComparison, RunSummary

WIDTH = 80
_MAX_CELL = 22
_CURVE_ROWS = 8
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))

Row = tuple[str, Callable[["RunSummary"], str]]


def comparison_lines(comparison: "RunComparison", titles: dict[str, str]) -> list[str]:
    """Return all lines. `titles`: name of a curve -> its title."""
    return [_fitted(line) for line in _lines(comparison, titles)]


def _lines(comparison: "RunComparison", titles: dict[str, str]) -> Iterator[str]:
    for run in comparison.runs:
        yield f"{run.label}  {_one_line(run.name)}: run {run.run} of {_one_line(run.job)}"
        yield from _wrapped(_one_line(run.uri), "   ")
    yield ""
    yield from _tables(comparison.runs, _rows(comparison))
    yield ""
    yield from _changes(comparison)
    for name in comparison.curves:
        yield ""
        yield from _curve(comparison.runs, name, titles[name])
    for note in comparison.notes:
        yield ""
        yield from textwrap.wrap(f"note: {_one_line(note)}", WIDTH, subsequent_indent="  ")


def _rows(comparison: "RunComparison") -> list[Row]:
    rows: list[Row] = [
        ("task", lambda run: run.task or "-"),
        ("dataset", lambda run: run.dataset_digest[:12] or "-"),
        *((f"{split} rows", _rows_of(split)) for split in ("train", "validation", "test")),
        ("base model", lambda run: run.model_digest[:12] or "-"),
        ("trained", lambda run: "-" if run.trained_parameters is None else _size(run.trained_parameters)),
        ("steps", lambda run: "-" if run.steps is None else f"{run.steps:,}"),
        ("pod time", lambda run: "-" if run.cost is None else duration(run.cost.pod_seconds)),
        ("GPU time", lambda run: "-" if run.cost is None else duration(run.cost.gpu_seconds)),
    ]
    for name in comparison.metrics:
        rows.append((metric_name(Metric(name)), _value_of(name)))
        if any(name in run.metrics and run.metrics[name].low is not None for run in comparison.runs):
            rows.append(("  interval", _interval_of(name)))
    return rows


def _rows_of(split: str) -> Callable[["RunSummary"], str]:
    return lambda run: f"{run.rows[split]:,}"


def _value_of(name: str) -> Callable[["RunSummary"], str]:
    def value(run: "RunSummary") -> str:
        found = run.metrics.get(name)
        return "-" if found is None else metric_value(Metric(name), found.value)

    return value


def _interval_of(name: str) -> Callable[["RunSummary"], str]:
    def interval(run: "RunSummary") -> str:
        found = run.metrics.get(name)
        if found is None or found.low is None or found.high is None:
            return "-"
        low, high = (metric_value(Metric(name), bound) for bound in (found.low, found.high))
        return f"{low.removesuffix(' %')} to {high}"

    return interval


def _tables(runs: Sequence["RunSummary"], rows: Sequence[Row]) -> Iterator[str]:
    """Yield one table, or several with some of the runs each if one is too wide."""
    left = list(runs)
    while left:
        for count in range(len(left), 0, -1):
            shown = left[:count]
            cells = [(title, *(_cut(_one_line(value(run)), _MAX_CELL) for run in shown)) for title, value in rows]
            lines = table_lines(("", *(run.label for run in shown)), cells)
            if count == 1 or max(map(len, lines)) <= WIDTH:
                break
        yield from lines
        left = left[len(shown) :]
        if left:
            yield ""


def _changes(comparison: "RunComparison") -> Iterator[str]:
    """Yield the values of each field that differs; runs with the same value share a line."""
    if not comparison.changes:
        yield "spec: no differences"
        return
    yield "spec:"
    for change in comparison.changes:
        yield f"  {_one_line(change.path)}"
        by_value: dict[str, list[str]] = {}
        for run in comparison.runs:
            by_value.setdefault(change.values.get(run.label, "-"), []).append(run.label)
        for value, labels in by_value.items():
            yield f"    {', '.join(labels)}  {_one_line(value)}"


def _curve(runs: Sequence["RunSummary"], name: str, title: str) -> Iterator[str]:
    """Yield a table of a curve at a few of its steps; a run has the value of the last point up to the step."""
    steps = sorted({step for run in runs for step, _ in run.curves.get(name, ())})
    count = min(_CURVE_ROWS, len(steps))
    chosen = [steps[(index + 1) * len(steps) // count - 1] for index in range(count)]
    yield f"{title.lower()}, by step:"
    yield from _tables(runs, [(f"{step:,}", _at(name, step)) for step in chosen])


def _at(name: str, step: int) -> Callable[["RunSummary"], str]:
    def value(run: "RunSummary") -> str:
        points = run.curves.get(name, ())
        if not points or step > points[-1][0]:
            return "-"
        passed = [value for at, value in points if at <= step]
        return f"{passed[-1]:.4g}" if passed else "-"

    return value


def _size(number: int) -> str:
    return next((f"{number / factor:.3g} {unit}" for factor, unit in _UNITS if number >= factor), str(number))


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def _wrapped(text: str, indent: str) -> Iterator[str]:
    """Yield an address in lines of at most `WIDTH` columns, without losing a part of it."""
    size = WIDTH - len(indent)
    for start in range(0, len(text), size):
        yield indent + text[start : start + size]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _fitted(line: str) -> str:
    return _cut(line, WIDTH)
