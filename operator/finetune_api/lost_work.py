"""Cost of restarts: repeated steps, and time without steps. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from .v1alpha1 import AttemptStatus, Outcome


@dataclass(frozen=True)
class LostWork:
    """Time that the run lost because an attempt ended early."""

    attempt: int
    """Number of the attempt that ended early."""
    steps: int
    """Optimizer steps that were in no checkpoint and that a later attempt repeated."""
    redo_seconds: float
    """Repeated steps times the mean step time."""
    restart_seconds: float
    """Time from the end of the attempt to the first optimizer step of the next one."""

    @property
    def seconds(self) -> float:
        """Total of `redo_seconds` and `restart_seconds`."""
        return self.redo_seconds + self.restart_seconds


def lost_work(attempts: Sequence[AttemptStatus], step_seconds: float) -> list[LostWork]:
    """Return the lost work of each attempt that was followed by another. `step_seconds` is the mean time of a step.

    The restart lasts from the end of the attempt to the first optimizer step of the next. If the next attempt ended
    before its first step, the restart lasts until that end, and the time after it belongs to the next attempt. After an
    attempt that was stopped on request, the restart begins with the creation of the next attempt, because the time
    before it may be an intended suspension. Attempts whose successor has neither completed a step nor ended are left
    out, because their cost is not yet known.

    Repeated steps are counted up to the next attempt that reports where it resumed. They are a lower bound, because
    `last_step` is the last step that was observed.
    """
    ordered = sorted(attempts, key=lambda attempt: attempt.number)
    found = []
    for index, (ended, following) in enumerate(pairwise(ordered)):
        back = following.first_step_time or following.end_time
        if ended.end_time is None or back is None:
            continue
        steps = _steps_redone(ended, ordered[index + 1 :])
        gone = following.start_time if ended.outcome is Outcome.STOPPED else ended.end_time
        found.append(
            LostWork(
                attempt=ended.number,
                steps=steps,
                redo_seconds=steps * step_seconds,
                restart_seconds=max(0.0, (_time(back) - _time(gone)).total_seconds()),
            )
        )
    return found


def _steps_redone(ended: AttemptStatus, later: Sequence[AttemptStatus]) -> int:
    if ended.last_step is None:
        return 0
    resumed = next((attempt.resumed_from_step or 0 for attempt in later if attempt.first_step_time), ended.last_step)
    return max(0, ended.last_step - resumed)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
