"""The attempts on a time line, and the time spent per phase. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.lost_work import LostWork, lost_work
from finetune_api.v1alpha1 import AttemptStatus, Outcome

from .formatting import moment
from .training_log import TrainingLog

_PHASE_ORDER = ("import", "claim", "model", "rate test", "engine", "restore", "steps", "evaluate", "save", "export")
_SMALL = 0.005
"""Phases below this share are combined."""


@dataclass(frozen=True)
class AttemptBar:
    """One attempt; positions and widths are percentages of the time line."""

    status: AttemptStatus
    left: float
    startup_width: float
    """From its creation to its first step."""
    work_width: float
    """From its first step to its end."""
    startup_seconds: float | None
    seconds: float
    lost: LostWork | None

    @property
    def succeeded(self) -> bool:
        """Whether it completed the training."""
        return self.status.outcome is Outcome.SUCCEEDED

    @property
    def result(self) -> str:
        """Its result as one word."""
        return self.status.reason or self.status.outcome or "running"

    @property
    def stopped(self) -> bool:
        """Whether a stop request ended it."""
        return self.status.outcome is Outcome.STOPPED


@dataclass(frozen=True)
class PhaseTime:
    """A kind of work and its share of the time."""

    name: str
    seconds: float
    share: float


def attempt_bars(attempts: Sequence[AttemptStatus], step_seconds: float) -> list[AttemptBar]:
    """One bar per attempt, in order; unknown parts of an attempt have zero width."""
    ordered = sorted(attempts, key=lambda attempt: attempt.number)
    if not ordered:
        return []
    lost = {entry.attempt: entry for entry in lost_work(ordered, step_seconds)}
    begin = min(moment(attempt.start_time) for attempt in ordered)
    whole = max(_ends(attempt)[1] for attempt in ordered) - begin
    total = max(whole.total_seconds(), 1.0)
    bars = []
    for attempt in ordered:
        start = moment(attempt.start_time)
        first, end = _ends(attempt)
        bars.append(
            AttemptBar(
                status=attempt,
                left=100 * (start - begin).total_seconds() / total,
                startup_width=100 * (first - start).total_seconds() / total,
                work_width=100 * (end - first).total_seconds() / total,
                startup_seconds=(first - start).total_seconds() if attempt.first_step_time else None,
                seconds=(end - start).total_seconds(),
                lost=lost.get(attempt.number),
            )
        )
    return bars


def phases(seconds: Mapping[str, float]) -> list[PhaseTime]:
    """The training phases in their order, then others in the given order; tiny ones are combined as `other`."""
    total = sum(seconds.values())
    if total <= 0:
        return []
    known = [name for name in _PHASE_ORDER if name in seconds]
    names = known + [name for name in seconds if name not in _PHASE_ORDER]
    shown = [PhaseTime(name, seconds[name], seconds[name] / total) for name in names if seconds[name] / total >= _SMALL]
    rest = total - sum(phase.seconds for phase in shown)
    return [*shown, PhaseTime("other", rest, rest / total)] if rest / total >= 1e-4 else shown


def step_seconds(training: TrainingLog, attempts: Sequence[AttemptStatus]) -> float:
    """Mean duration of an optimizer step in the last attempt; 0 if unknown."""
    last = max(attempts, key=lambda attempt: attempt.number, default=None)
    done = training.steps - ((last.resumed_from_step or 0) if last else 0)
    return training.phase_seconds.get("steps", 0.0) / done if done > 0 else 0.0


def restart_marks(attempts: Sequence[AttemptStatus]) -> list[tuple[float, str]]:
    """Return the step and the label of every attempt that resumed the training."""
    return [
        (float(attempt.resumed_from_step or 0), f"attempt {attempt.number}")
        for attempt in sorted(attempts, key=lambda attempt: attempt.number)[1:]
        if attempt.first_step_time is not None
    ]


def _ends(attempt: AttemptStatus) -> tuple[datetime, datetime]:
    """Times of the first step and of the end; if one is unknown, the time before it."""
    start = moment(attempt.start_time)
    end = moment(attempt.end_time) if attempt.end_time else None
    first = moment(attempt.first_step_time) if attempt.first_step_time else end or start
    return first, end or first
