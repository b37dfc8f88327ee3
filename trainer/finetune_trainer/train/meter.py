"""Measures the speed of the training on rank 0."""

import resource
import time
from collections import deque
from typing import Any

import torch

from finetune_api.clock import rfc3339, utc_now

from ..progress import ProgressReporter

WINDOW_STEPS = 20
"""Number of steps over which the recent speed is averaged."""


class StepMeter:
    """Times optimizer steps, without the evaluations and saves between them, and reports progress."""

    def __init__(self, report: ProgressReporter, *, total_steps: int) -> None:
        self._report = report
        self._total = total_steps
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW_STEPS)
        self._since = time.monotonic()
        self._tokens = 0.0

    def resume(self) -> None:
        """Restart the clock of the current step, after an evaluation or a save."""
        self._since = time.monotonic()

    @property
    def step_seconds(self) -> float:
        """Recent mean time of a step in seconds; 0 before the first step."""
        return sum(taken for taken, _ in self._recent) / len(self._recent) if self._recent else 0.0

    def step_done(self, step: int, *, epoch: float, tokens: float) -> float:
        """Record an optimizer step with `tokens` tokens without padding over all ranks. Returns its time in seconds."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._recent.append((seconds, tokens))
        self._report.add_seconds("steps", seconds)
        self._tokens += tokens
        fields: dict[str, Any] = {}
        if self._report.progress.first_step_time is None:
            fields["first_step_time"] = rfc3339(utc_now())
        taken = sum(each for each, _ in self._recent)
        self._report.update(
            step=step,
            epoch=round(epoch, 4),
            tokens=int(self._tokens),
            tokens_per_second=round(sum(count for _, count in self._recent) / taken, 1),
            step_seconds=round(self.step_seconds, 4),
            eta_seconds=round((self._total - step) * self.step_seconds, 1),
            peak_memory_bytes=peak_memory_bytes(),
            **fields,
        )
        return seconds


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, or on a GPU the peak memory that torch has allocated there."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
