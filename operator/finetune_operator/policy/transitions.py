"""Transitions of attempts between two states of a job, for Events and metrics."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.constants import Stage
from finetune_api.lost_work import LostWork, lost_work
from finetune_api.v1alpha1 import AttemptStatus, Status


@dataclass(frozen=True)
class FirstStep:
    """The first optimizer step of a training attempt."""

    attempt: AttemptStatus
    time: str
    """Time of the step, RFC 3339."""
    is_restart: bool
    """Whether it follows another training attempt."""
    cost: LostWork | None
    """Lost work of the previous attempt, without the time of repeated steps."""


def ended(before: Status, after: Status) -> Iterator[AttemptStatus]:
    """Yield attempts that have an outcome now and had none before."""
    known = {attempt.job_name for attempt in _attempts_before(before, after) if attempt.outcome is not None}
    yield from (entry for entry in after.run.attempts if entry.outcome is not None and entry.job_name not in known)


def _attempts_before(before: Status, after: Status) -> tuple[AttemptStatus, ...]:
    """Return the attempts that the run of `after` had before; those of a run that is reused are in the history."""
    past = (entry.attempts for entry in before.history if entry.number == after.run.number)
    return before.run.attempts + next(past, ())


def first_steps(before: Status, after: Status) -> Iterator[FirstStep]:
    """Yield training attempts that have completed their first step."""
    stepped = {attempt.job_name for attempt in _attempts_before(before, after) if attempt.first_step_time}
    trainings = [attempt for attempt in after.run.attempts if attempt.stage is Stage.TRAIN]
    for index, attempt in enumerate(trainings):
        if attempt.first_step_time and attempt.job_name not in stepped:
            costs = lost_work(trainings[: index + 1], step_seconds=0.0)
            yield FirstStep(attempt, attempt.first_step_time, index > 0, costs[-1] if costs else None)
