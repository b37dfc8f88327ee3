"""Time left until `spec.budget.deadline`. Time in which the job is suspended or waits in a queue does not count.

Unlike with a `batch/v1` Job, a suspension does not reset the deadline.
"""

from datetime import datetime

from finetune_api.clock import time_after
from finetune_api.v1alpha1 import Spec, Status
from finetune_api.v1alpha1.quantities import seconds


def with_suspension(status: Status, is_suspended: bool, now: str) -> Status:
    """Record in status since when the run is suspended or in a queue, and for how long it was before."""
    if is_suspended and status.run.suspended_since is None:
        return status.with_run(suspended_since=now)
    if not is_suspended and status.run.suspended_since is not None:
        past = round(suspended_seconds(status, datetime.fromisoformat(now)), 3)
        return status.with_run(suspended_since=None, suspended_seconds=past)
    return status


def suspended_seconds(status: Status, now: datetime) -> float:
    """Return the total time for which the run has been suspended."""
    past = status.run.suspended_seconds or 0.0
    if status.run.suspended_since is None:
        return past
    return past + max(0.0, (now - datetime.fromisoformat(status.run.suspended_since)).total_seconds())


def seconds_left(spec: Spec, status: Status, now: datetime) -> float | None:
    """Return the seconds until the deadline of the run: negative after it, None without a deadline."""
    if spec.budget.deadline is None or not status.run.start_time:
        return None
    allowed = seconds(spec.budget.deadline) + suspended_seconds(status, now)
    return (time_after(status.run.start_time, allowed) - now).total_seconds()
