"""What restarts cost: work done twice, and time in which no step was done. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from .v1alpha1 import AttemptStatus, Outcome


@dataclass(frozen=True)
class LostWork:
    """What the end of one attempt cost the run."""

    attempt: int
    """The attempt that ended too soon."""
    steps: int
    """Optimizer steps it had done that were in no checkpoint, so that a later attempt did them again."""
    redo_seconds: float
    """Those steps times the mean step time."""
    restart_seconds: float
    """From its end to the first optimizer step of the next attempt."""

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.redo_seconds + self.restart_seconds


def lost_work(attempts: Sequence[AttemptStatus], step_seconds: float) -> list[LostWork]:
    """What each attempt that was followed by another one lost; `step_seconds` is the mean time of a step.

    The restart lasts from the end of the attempt to the first optimizer step of the next. A next attempt that ended
    before its first step counts up to its own end; the rest is counted at that one, so nothing is counted twice. After
    an attempt that was stopped on request it lasts from the creation of the next attempt: the wait before it may
    be a suspension, which is wanted. An attempt whose follower has neither stepped nor ended is left out: its cost is
    not known yet.

    Steps are counted against the next attempt that says where it resumed. They are a lower bound: `last_step` is the
    last one that was seen.
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
