"""The page of `finetune status`, as plain text, with the most urgent information first. Pure."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.constants import Phase
from finetune_api.v1alpha1 import AttemptStatus, CandidateName, FineTuneJob, PastRun, ResolvedStatus, Status
from finetune_operator.manifests import Manifest

from .conditions import phase_since, wrong_conditions
from .plain import figures_text
from .summary import baseline_rows, export_rows, regression_rows, summarize
from .table import table_lines
from .text import duration, metric_name, metric_value, seconds_since
from .view import snapshot

_LABEL_WIDTH = 14
_GAP = 3
"""Spaces between the columns of metrics."""
_MAX_MESSAGE_LINES = 8
_MAX_EVENTS = 6
_MAX_BAR = 40


@dataclass(frozen=True)
class Page:
    """A job and how to show it."""

    job: FineTuneJob
    where: str
    """Folder or cluster of the job."""
    events: Sequence[Manifest] | None
    """None if the user may not read them."""
    now: datetime
    width: int = 80
    is_interrupted: bool = False
    """True if no process runs the job."""

    @property
    def status(self) -> Status:
        """Status of the job."""
        return self.job.status

    def lines(self) -> list[str]:
        """Return the lines of the page."""
        blocks = (
            self._progress,
            self._attempts,
            self._failure,
            self._rules,
            self._notes,
            self._warnings,
            self._results,
            self._history,
            self._conditions,
            self._events,
        )
        found = [list(self._head()), *(list(block()) for block in blocks)]
        return [line for block in found if block for line in ("", *block)][1:]

    def _head(self) -> Iterator[str]:
        status = self.status
        since = phase_since(status)
        if since is None:
            spent = ""
        else:
            spent = duration(seconds_since(since, self.now))
            spent = f" {spent} ago" if status.phase.is_terminal else f" for {spent}"
        yield f"{self.job.metadata.name}: {status.phase}{spent}"
        words = [self.where]
        if status.run.number:
            words.append(f"run {status.run.number}")
        if status.run.start_time:
            began = datetime.fromisoformat(status.run.start_time).astimezone()
            took = duration(snapshot(self.job, None, self.now).elapsed_seconds)
            words.append(f"started {began:%Y-%m-%d %H:%M:%S}, {took if status.run.completion_time else f'{took} ago'}")
        yield from textwrap.wrap(", ".join(words), self.width, break_long_words=False)
        if self.is_interrupted and not status.phase.is_terminal:
            yield "interrupted: no process runs it; `finetune run JOB.yaml` resumes"

    def _progress(self) -> Iterator[str]:
        status = self.status
        figures = status.run.progress
        if figures is not None and figures.total_steps:
            steps = f" {figures.percent:3d} %, step {figures.step} of {figures.total_steps}"
            bar = min(_MAX_BAR, self.width - _LABEL_WIDTH - len(steps) - 2)
            done = bar * min(figures.step, figures.total_steps) // figures.total_steps
            yield from self._row("progress", f"[{'#' * done}{'.' * (bar - done)}]{steps}")
            yield from self._row("", figures_text(figures, is_running=status.phase is Phase.TRAINING))
        if status.run.last_checkpoint is not None:
            age = duration(seconds_since(status.run.last_checkpoint.time, self.now))
            uri = status.run.last_checkpoint.uri
            yield from self._row("checkpoint", f"step {status.run.last_checkpoint.step}, {age} ago: {uri}")
        if status.run.number:
            limits = self.job.spec.restart
            yield from self._row(
                "restarts",
                f"{status.run.restarts} of {limits.max_restarts} since the last new checkpoint, "
                f"disruptions {status.run.disruptions} of {limits.max_disruptions}",
            )
        if status.run.resolved is not None:
            yield from self._row("resolved", _resolved_text(status.run.resolved))

    def _attempts(self) -> Iterator[str]:
        if not self.status.run.attempts:
            return
        headings = ("stage", "attempt", "outcome", "took", "from step", "to", "reason")
        yield from table_lines(headings, [_attempt_row(attempt, self.now) for attempt in self.status.run.attempts])
        for attempt in self.status.run.attempts:
            if attempt.plan is not None and attempt.plan.reason:
                yield from self._row("plan", f"attempt {attempt.number}: {attempt.plan.reason}")

    def _failure(self) -> Iterator[str]:
        failure = self.status.run.failure
        if failure is None:
            return
        code = f" (exit status {failure.exit_code})" if failure.exit_code else ""
        label = "failure" if self.status.phase is Phase.FAILED else "last failure"
        yield from self._row(label, f"{failure.failure_class}{code} in {failure.stage} attempt {failure.attempt}")
        rank = None if failure.rank is None else f"rank {failure.rank}"
        pod, node = (f"{what} {name}" if name else "" for what, name in (("pod", failure.pod), ("node", failure.node)))
        yield from self._row("where", ", ".join(filter(None, [rank, pod, node])))
        yield from self._row("message", *_first_and_last(failure.message.splitlines()))
        yield from self._row("advice", failure.advice)

    def _rules(self) -> Iterator[str]:
        resolved = self.status.run.resolved
        if resolved is None or not resolved.rules:
            return
        headings = ("data rule", "changed", "dropped", "added")
        rows = [(each.rule, *(f"{n:,}" for n in (each.changed, each.dropped, each.added))) for each in resolved.rules]
        yield from table_lines(headings, rows, numbers=True, gap=_GAP, first_width=_LABEL_WIDTH - _GAP)

    def _notes(self) -> Iterator[str]:
        for number, note in enumerate(self.status.run.notes):
            yield from self._row("" if number else "notes", note)

    def _warnings(self) -> Iterator[str]:
        for number, warning in enumerate(self.status.run.warnings):
            yield from self._row("" if number else "warnings", warning)

    def _results(self) -> Iterator[str]:
        metrics = summarize(self.job).metrics
        if metrics:
            headings = ("test split", "base model", "tuned", "change")
            yield from table_lines(headings, metrics, numbers=True, gap=_GAP, first_width=_LABEL_WIDTH - _GAP)
        for label, text in (*baseline_rows(self.status), *regression_rows(self.status), *export_rows(self.status)):
            yield from self._row(label, text)
        if self.status.run.artifact is not None:
            yield from self._row("model", self.status.run.artifact.uri)
            yield from self._row("report", self.status.run.artifact.report)

    def _history(self) -> Iterator[str]:
        if not self.status.history:
            return
        headings = ("earlier run", "result", "steps", "test split", "model")
        yield from table_lines(headings, [_past_run_row(past) for past in self.status.history])
        changes = [(past.number, past.changes) for past in self.status.history]
        for number, changed in (*changes, (self.status.run.number, self.status.run.changes)):
            yield from self._row("changes", *(f"run {number}: {change}" for change in changed))

    def _conditions(self) -> Iterator[str]:
        label = "conditions"
        for types, text in wrong_conditions(self.job):
            yield from self._row(label, *_first_and_last(f"{types}: {text}".splitlines()))
            label = ""

    def _events(self) -> Iterator[str]:
        if self.events is None:
            yield from self._row("events", "not permitted")
            return
        label = "events"
        shown = sorted(self.events, key=_order_of)[-_MAX_EVENTS:]
        ages = [duration(seconds_since(_time_of(event), self.now)) for event in shown]
        width = max(map(len, ages), default=0)
        for event, age in zip(shown, ages, strict=True):
            mark = "! " if event.get("type") == "Warning" else ""
            message = " ".join(str(event.get("message", "")).split())
            line = f"{label:<{_LABEL_WIDTH}}{age:>{width}} ago  {mark}{event.get('reason', '')}: {message}"
            yield line if len(line) <= self.width else f"{line[: self.width - 3]}..."
            label = ""

    def _row(self, label: str, *texts: str) -> Iterator[str]:
        """Yield a label with wrapped texts, except empty ones. Addresses are not broken, so that they can be copied."""
        for text in filter(None, texts):
            folded = textwrap.wrap(
                text, self.width - _LABEL_WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=""
            )
            for line in folded:
                yield f"{label:<{_LABEL_WIDTH}}{line}".rstrip()
                label = ""


def _attempt_row(attempt: AttemptStatus, now: datetime) -> tuple[str, ...]:
    end = datetime.fromisoformat(attempt.end_time) if attempt.end_time else now
    return (
        attempt.stage.value,
        str(attempt.number),
        attempt.outcome.value if attempt.outcome else "running",
        duration(seconds_since(attempt.start_time, end)),
        "-" if attempt.resumed_from_step is None else str(attempt.resumed_from_step),
        "-" if attempt.last_step is None else str(attempt.last_step),
        attempt.reason,
    )


def _time_of(event: Manifest) -> str:
    """Return the last time of an Event. Clients set different fields."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def _order_of(event: Manifest) -> tuple[str, int]:
    """Sort key by time and resource version. Times are whole seconds, in which several Events can occur."""
    version = str(event.get("metadata", {}).get("resourceVersion", ""))
    return _time_of(event), int(version) if version.isdecimal() else 0


def _past_run_row(past: PastRun) -> tuple[str, ...]:
    tuned = past.candidates.get(CandidateName.TUNED)
    figures = (
        ""
        if tuned is None
        else ", ".join(
            f"{metric_name(metric)} {metric_value(metric, value)}" for metric, value in tuned.metrics.items()
        )
    )
    result = f"{past.result} ({past.reason})" if past.reason else past.result
    steps = "" if past.step is None else str(past.step)
    return (str(past.number), result, steps, figures, past.artifact.uri if past.artifact else "")


def _resolved_text(resolved: ResolvedStatus) -> str:
    """Return `SequenceClassification, Text data, Float32, ZeRO 2, micro-batch 8 x 2 accumulated, batching Padded`."""
    batch = "" if resolved.micro_batch_size is None else f"micro-batch {resolved.micro_batch_size}"
    if batch and resolved.gradient_accumulation_steps:
        batch += f" x {resolved.gradient_accumulation_steps} accumulated"
    words = [
        resolved.task,
        f"{resolved.format} data" if resolved.format else "",
        resolved.dtype,
        "" if resolved.zero_stage is None else f"ZeRO {resolved.zero_stage}",
        f"offload {resolved.offload}" if resolved.offload else "",
        "" if resolved.learning_rate is None else f"learning rate {resolved.learning_rate:g}",
        batch,
        f"batching {resolved.batching}" if resolved.batching else "",
    ]
    return ", ".join(filter(None, words))


def _first_and_last(lines: Sequence[str]) -> Sequence[str]:
    """Shorten a message. The first line states what happened, and the last lines where."""
    if len(lines) <= _MAX_MESSAGE_LINES:
        return lines
    return [lines[0], "...", *lines[2 - _MAX_MESSAGE_LINES :]]
