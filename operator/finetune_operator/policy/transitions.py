"""What has happened to attempts between two states of a job: what is announced, and what is counted."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.constants import Stage
from finetune_api.lost_work import LostWork, lost_work
from finetune_api.v1alpha1 import AttemptStatus, Status


@dataclass(frozen=True)
class FirstStep:
    """A training has done its first optimizer step."""

    attempt: AttemptStatus
    time: str
    """When: RFC 3339."""
    is_restart: bool
    """Another attempt at the training went before it."""
    cost: LostWork | None
    """What the end of that one has cost, without the time of the steps that are done again."""


def ended(before: Status, after: Status) -> Iterator[AttemptStatus]:
    """Attempts whose end has been judged."""
    known = {attempt.job_name for attempt in before.run.attempts if attempt.outcome is not None}
    yield from (entry for entry in after.run.attempts if entry.outcome is not None and entry.job_name not in known)


def first_steps(before: Status, after: Status) -> Iterator[FirstStep]:
    """Trainings that have done their first step."""
    stepped = {attempt.job_name for attempt in before.run.attempts if attempt.first_step_time}
    trainings = [attempt for attempt in after.run.attempts if attempt.stage is Stage.TRAIN]
    for index, attempt in enumerate(trainings):
        if attempt.first_step_time and attempt.job_name not in stepped:
            costs = lost_work(trainings[: index + 1], step_seconds=0.0)
            yield FirstStep(attempt, attempt.first_step_time, index > 0, costs[-1] if costs else None)
