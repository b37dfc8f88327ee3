"""A display for terminals: a few lines that are updated in place while the run continues."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.clock import utc_now
from finetune_api.constants import Phase, Stage
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob

from ..terminal import printable
from .plain import PHASES_WITH_NOTICE, validation_text
from .summary import RUN_AGAIN, NextSteps, Summary, summarize
from .text import count, duration, sparkline
from .view import StageState, StageView, View, snapshot

_REFRESHES_PER_SECOND = 8
"""Enough for a smooth spinner. Independent of the rate of `update`, which only replaces the content."""

_CURVE_COLUMNS = 24

_MARKS = {
    StageState.WAITING: ("○", "dim"),
    StageState.DONE: ("✓", "green"),
    StageState.FAILED: ("✗", "red"),
    StageState.STOPPED: ("‖", "yellow"),
}
_PHASE_STYLES = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.INVALID: "red", Phase.SUSPENDED: "yellow"}


class LossCurve:
    """Losses of a run by step. Steps that are repeated after a restart replace earlier losses."""

    def __init__(self) -> None:
        self._points: list[tuple[int, float]] = []

    def add(self, step: int, loss: float | None) -> None:
        """Add a point, unless it equals the last one."""
        if loss is None or (self._points and self._points[-1] == (step, loss)):
            return
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        self._points.append((step, loss))

    def bars(self, width: int) -> str:
        """Return the curve as one line of text."""
        return sparkline([loss for _, loss in self._points], width)


class LiveDisplay:
    """Redraws in place. Events, warnings and ends of attempts are printed above the live part, once each."""

    def __init__(
        self, console: Console, *, clock: Callable[[], float] = time.monotonic, next_steps: NextSteps = RUN_AGAIN
    ) -> None:
        self._console = console
        self._clock = clock
        self._ways = next_steps
        self._curve = LossCurve()
        self._printed: set[str] = set()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, refresh_per_second=_REFRESHES_PER_SECOND, redirect_stderr=False)

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        """Show the current state at the next refresh."""
        view = snapshot(job, progress, utc_now())
        self._curve.add(view.figures.step, view.figures.loss)
        if view.last_end and view.phase is Phase.RESTARTING:
            self._print_once(view.last_end.text, "yellow")
        for warning in view.warnings:
            self._print_once(f"warning: {warning}", "yellow")
        self._live.update(frame(view, self._curve, self._spinner))

    def event(self, text: str) -> None:
        """Print a line above the live part."""
        self._console.print(Text(printable(text), style="bold"))

    def finish(self, job: FineTuneJob) -> None:
        """Stop updating the live part and print the summary below it."""
        self.update(job, None)
        self._live.stop()
        self._console.print(summary_table(summarize(job, next_steps=self._ways)))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _print_once(self, text: str, style: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            self._console.print(Text(printable(text), style=style))


def frame(view: View, curve: LossCurve, spinner: Spinner) -> RenderableType:
    """Return the live part: title, stages, bar, metrics and checkpoint. The height is constant (five lines)."""
    return Group(_title(view), _stages(view, spinner), _bar(view), _figures(view, curve), _state(view))


def _line(text: Text) -> Text:
    text.no_wrap = True
    text.overflow = "ellipsis"
    return text


def _title(view: View) -> Text:
    text = Text().append(printable(view.name), style="bold")
    text.append(f"  run {view.run}", style="dim")
    if view.attempt > 1:
        text.append(f"  attempt {view.attempt}", style="yellow")
        if view.resumed_from_step:
            text.append(f" resumed from step {view.resumed_from_step}", style="yellow")
    text.append(f"  {view.phase}", style=_PHASE_STYLES.get(view.phase, "cyan"))
    text.append(f"  {duration(view.elapsed_seconds)}", style="dim")
    return _line(text)


def _stages(view: View, spinner: Spinner) -> Table:
    grid = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = []
    for stage in view.stages:
        cells += [_mark(stage, spinner), _stage_text(stage)]
    grid.add_row(*cells)
    return grid


def _mark(stage: StageView, spinner: Spinner) -> RenderableType:
    if stage.state is StageState.RUNNING:
        return spinner
    mark, style = _MARKS[stage.state]
    return Text(mark, style=style)


def _stage_text(stage: StageView) -> Text:
    text = Text().append(stage.stage, style="dim" if stage.state is StageState.WAITING else "bold")
    if stage.seconds:
        text.append(f" {duration(stage.seconds)}", style="dim")
    text.append("  ")
    return text


def _bar(view: View) -> Table:
    figures = view.figures
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    steps = f"step {figures.step}/{figures.total_steps} · {figures.percent} %" if figures.total_steps else ""
    grid.add_row(ProgressBar(total=max(1, figures.total_steps), completed=figures.step), Text(steps))
    return grid


def _figures(view: View, curve: LossCurve) -> Text:
    figures = view.figures
    text = Text()
    if figures.loss is not None:
        text.append("loss ", style="dim").append(f"{figures.loss:.3f} ").append(
            curve.bars(_CURVE_COLUMNS), style="cyan"
        )
    if figures.total_steps:
        text.append("  epoch ", style="dim").append(f"{figures.epoch:.1f}")
    if figures.tokens_per_second:
        text.append(f"  {count(figures.tokens_per_second)}").append(" tokens/s", style="dim")
    if figures.eta_seconds is not None and view.stage == Stage.TRAIN and figures.step < figures.total_steps:
        text.append("  left ", style="dim").append(duration(figures.eta_seconds))
    return _line(text)


def _state(view: View) -> Text:
    text = Text()
    if view.checkpoint is not None:
        text.append("checkpoint ", style="dim").append(f"step {view.checkpoint.step}")
        text.append(f" {duration(view.checkpoint.age_seconds)} ago", style="dim")
    if view.validation:
        text.append("  validation ", style="dim").append(validation_text(view))
    message = view.notice if view.phase in {*PHASES_WITH_NOTICE, Phase.SUSPENDING} else view.activity
    if view.phase is Phase.RESTARTING:
        message = view.activity or message  # the pods of the next attempt may be running already
    if message:
        text.append(printable(f"{'  ' if text else ''}{message}"), style="italic dim")
    return _line(text)


def summary_table(summary: Summary) -> RenderableType:
    """Return metrics and facts of a finished run."""
    parts: list[RenderableType] = [
        Text(""),
        Text(printable(summary.title), style="bold green" if summary.succeeded else "bold red"),
    ]
    if summary.metrics:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("test split", style="dim")
        for heading in ("base model", "tuned", "change"):
            table.add_column(heading, justify="right", style="bold" if heading == "tuned" else None)
        for row in summary.metrics:
            table.add_row(*row)
        parts.append(Padding(table, (1, 0, 1, 0)))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in summary.facts:
        facts.add_row(label, Text(printable(value)))
    return Group(*parts, facts)
