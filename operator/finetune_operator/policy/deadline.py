"""How much of `spec.budget.deadline` is left. Time in which the job is suspended does not count, as for a `batch/v1`
Job; unlike there, a suspension does not give the whole deadline back."""

from datetime import datetime, timedelta

from finetune_api.v1alpha1 import Spec, Status
from finetune_api.v1alpha1.quantities import seconds


def with_suspension(status: Status, spec: Spec, now: str) -> Status:
    """Status of a run that goes on, which knows since when, and for how long before, it has been suspended."""
    if spec.suspend and status.run.suspended_since is None:
        return status.with_run(suspended_since=now)
    if not spec.suspend and status.run.suspended_since is not None:
        past = round(suspended_seconds(status, datetime.fromisoformat(now)), 3)
        return status.with_run(suspended_since=None, suspended_seconds=past)
    return status


def suspended_seconds(status: Status, now: datetime) -> float:
    """How long the run has been suspended so far."""
    past = status.run.suspended_seconds or 0.0
    if status.run.suspended_since is None:
        return past
    return past + max(0.0, (now - datetime.fromisoformat(status.run.suspended_since)).total_seconds())


def seconds_left(spec: Spec, status: Status, now: datetime) -> float | None:
    """Until the run's deadline; negative once it is over, None where there is none."""
    if spec.budget.deadline is None or not status.run.start_time:
        return None
    allowed = seconds(spec.budget.deadline) + suspended_seconds(status, now)
    return (datetime.fromisoformat(status.run.start_time) + timedelta(seconds=allowed) - now).total_seconds()
