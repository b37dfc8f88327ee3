"""A display for programs: one JSON object per line, with a fixed set of keys per event."""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from finetune_api.clock import utc_now
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob

from ..terminal import echo
from .view import View, snapshot

_MIN_SECONDS = 1.0
"""Minimum time between `progress` lines, unless phase, stage, attempt or checkpoint change."""


class JsonDisplay:
    """Writes `progress` at most once a second, `message` for events, and `finished` once, with the whole status."""

    def __init__(self, stream: TextIO = sys.stdout, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last: dict[str, Any] = {}
        self._written = float("-inf")

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        """Write a line if something has changed."""
        fields = progress_fields(snapshot(job, progress, utc_now()))
        moved = any(fields[key] != self._last.get(key) for key in ("phase", "stage", "attempt", "checkpointStep"))
        if fields == self._last or not (moved or self._clock() - self._written >= _MIN_SECONDS):
            return
        self._last, self._written = fields, self._clock()
        self._write("progress", fields)

    def event(self, text: str) -> None:
        """Write a `message` line."""
        self._write("message", {"text": text})

    def finish(self, job: FineTuneJob) -> None:
        """Write the `finished` line."""
        status = job.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        self._write("finished", {"job": job.metadata.name, "phase": job.status.phase, "status": status})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        line = {"event": event, "time": utc_now().isoformat(timespec="milliseconds"), **fields}
        echo(json.dumps(line, ensure_ascii=False), file=self._stream)


def progress_fields(view: View) -> dict[str, Any]:
    """Return the fields of a `progress` line. All keys are always present; missing values are null."""
    figures = view.figures
    return {
        "job": view.name,
        "run": view.run,
        "phase": view.phase,
        "stage": view.stage or None,
        "attempt": view.attempt,
        "activity": view.activity or None,
        "step": figures.step,
        "totalSteps": figures.total_steps,
        "percent": figures.percent,
        "epoch": figures.epoch,
        "loss": figures.loss,
        "learningRate": figures.learning_rate,
        "tokensPerSecond": figures.tokens_per_second,
        "etaSeconds": figures.eta_seconds,
        "checkpointStep": view.checkpoint.step if view.checkpoint else None,
        "resumedFromStep": view.resumed_from_step,
        "validation": {metric.value: value for metric, value in view.validation.items()},
        "warnings": list(view.warnings),
    }
