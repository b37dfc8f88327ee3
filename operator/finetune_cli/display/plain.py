"""A display for logs: one line for each change, and lines of progress at intervals."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Self, TextIO

from finetune_api.clock import utc_now
from finetune_api.constants import Phase
from finetune_api.progress import Progress
from finetune_api.stages import STAGES
from finetune_api.v1alpha1 import FineTuneJob, ProgressStatus

from ..terminal import echo
from .summary import RUN_AGAIN, NextSteps, Summary, summarize
from .table import table_lines
from .text import count, duration, metric_name, metric_value
from .view import StageState, View, snapshot

_PHASES = {
    Phase.PENDING: "waiting",
    Phase.RESTARTING: "restarting the {stage}",
    Phase.SUSPENDING: "suspending: saving a checkpoint",
    Phase.SUSPENDED: "suspended",
    Phase.SUCCEEDED: "succeeded",
    Phase.FAILED: "failed",
    Phase.INVALID: "rejected: the job is invalid",
}
"""Phases that are shown instead of the stage, with their text."""

_STAGES: dict[str, str] = {stage: row.noun for stage, row in STAGES.items()}

PHASES_WITH_NOTICE = frozenset({Phase.PENDING, Phase.RESTARTING})
"""Phases that are shown with the message of the Ready condition."""


class PlainDisplay:
    """Writes lines such as `12:01:24  train: step 180 of 296, loss 0.412, 2,140 tokens/s, 24 s left`."""

    def __init__(
        self,
        stream: TextIO = sys.stdout,
        *,
        clock: Callable[[], float] = time.monotonic,
        next_steps: NextSteps = RUN_AGAIN,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._ways = next_steps
        self._started = clock()
        self._before: View | None = None
        self._progress_printed_at = float("-inf")
        self._printed: set[tuple[object, ...]] = set()

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        """Print what has changed since the last call."""
        view = snapshot(job, progress, utc_now())
        for line in changes(self._before, view):
            self.event(line)
        if view.activity:
            self._print_once(f"{view.stage}: {view.activity}", key=(view.stage, view.attempt))
        for warning in view.warnings:
            self._print_once(f"warning: {warning}", key=())
        moved = self._before is None or view.figures.step != self._before.figures.step
        if view.phase is Phase.TRAINING and moved and self._clock() - self._progress_printed_at >= self._interval():
            self._progress_printed_at = self._clock()
            self.event(f"train: {progress_line(view)}")
        self._before = view

    def event(self, text: str) -> None:
        """Write a line with the time."""
        echo(f"{datetime.now().astimezone():%H:%M:%S}  {text}", file=self._stream)

    def finish(self, job: FineTuneJob) -> None:
        """Write the summary."""
        self.update(job, None)
        echo("\n".join(["", *summary_lines(summarize(job, next_steps=self._ways))]), file=self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _print_once(self, text: str, *, key: tuple[object, ...]) -> None:
        """Print a line once per key. Some activities, such as saving, repeat at every checkpoint."""
        if (text, *key) not in self._printed:
            self._printed.add((text, *key))
            self.event(text)

    def _interval(self) -> float:
        """Return the seconds between lines of progress, which increase so that logs of long runs stay short."""
        elapsed = self._clock() - self._started
        return 2.0 if elapsed < 60 else 10.0 if elapsed < 600 else 60.0


def changes(before: View | None, after: View) -> Iterator[str]:
    """Yield one line for each difference."""
    if before is None or after.run != before.run:
        yield f"{after.name}: run {after.run}" if after.run else after.name
    ended = {stage.stage for stage in before.stages if stage.state is StageState.DONE} if before else set()
    for stage in after.stages:
        if stage.state is StageState.DONE and stage.stage not in ended:
            yield f"{stage.stage}: done in {duration(stage.seconds)}"
    if before is None or _phase_key(after) != _phase_key(before):
        yield from _phase_lines(before, after)
    if after.resumed_from_step and (before is None or after.resumed_from_step != before.resumed_from_step):
        yield f"{after.stage}: attempt {after.attempt} resumed from the checkpoint of step {after.resumed_from_step}"
    if after.checkpoint and (
        before is None or before.checkpoint is None or before.checkpoint.step != after.checkpoint.step
    ):
        yield f"train: checkpoint of step {after.checkpoint.step} committed"
    if after.validation and (before is None or after.validation != before.validation):
        yield f"train: validation {validation_text(after)}"


def _phase_key(view: View) -> tuple[object, ...]:
    """Return phase and attempt, and the reason of a pending job, which can change while it waits."""
    return (view.phase, view.attempt, view.notice if view.phase is Phase.PENDING else "")


def _phase_lines(before: View | None, after: View) -> Iterator[str]:
    if after.last_end and (before is None or after.last_end != before.last_end):
        yield after.last_end.text
    if after.phase in _PHASES:
        reason = f" ({after.notice})" if after.phase in PHASES_WITH_NOTICE and after.notice else ""
        yield f"{_PHASES[after.phase].format(stage=_STAGES.get(after.stage, 'stage'))}{reason}"
    elif before is None or after.stage != before.stage or after.attempt != before.attempt:
        yield f"{after.stage}: {'started' if after.attempt < 2 else f'attempt {after.attempt} started'}"


def progress_line(view: View) -> str:
    """Return `step 180 of 296, loss 0.412, 2,140 tokens/s, 24 s left`: with the time, it fits into 80 columns."""
    steps = f"step {view.figures.step} of {view.figures.total_steps}"
    return ", ".join([steps, *_figures(view.figures, is_running=True)])


def figures_text(figures: ProgressStatus, *, is_running: bool) -> str:
    """Return `epoch 4.9, loss 0.412, 2,140 tokens/s, 24 s left`; the last two only for a running stage."""
    return ", ".join([f"epoch {figures.epoch:.1f}", *_figures(figures, is_running=is_running)])


def _figures(figures: ProgressStatus, *, is_running: bool) -> list[str]:
    words = []
    if figures.loss is not None:
        words.append(f"loss {figures.loss:.4g}")
    if is_running and figures.tokens_per_second:
        words.append(f"{count(figures.tokens_per_second)} tokens/s")
    if is_running and figures.eta_seconds is not None:
        words.append(f"{duration(figures.eta_seconds)} left")
    return words


def validation_text(view: View) -> str:
    """Return `loss 0.41, accuracy 84.2 %`."""
    return ", ".join(
        f"{metric_name(metric)} {metric_value(metric, value)}" for metric, value in view.validation.items()
    )


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield the summary as aligned text, without colors or boxes."""
    yield summary.title
    if summary.metrics:
        for line in table_lines(("", "base model", "tuned", "change"), summary.metrics, numbers=True, gap=3):
            yield f"  {line}"
    label_width = max((len(label) for label, _ in summary.facts), default=0)
    for label, value in summary.facts:
        first, *rest = value.splitlines()
        yield f"  {label.ljust(label_width)}   {first}"
        for line in rest:
            yield f"  {' ' * label_width}   {line}"
