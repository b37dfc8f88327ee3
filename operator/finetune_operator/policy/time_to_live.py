"""Deletion of the children of a run that has ended, `spec.ttlSecondsAfterFinished` after its end."""

from datetime import datetime

from finetune_api.clock import rfc3339, time_after
from finetune_api.v1alpha1 import Spec, Status

from ..observed import Observed


def due_at(spec: Spec, status: Status) -> datetime | None:
    """Return when the children of a run that has ended are deleted; None: they are kept, or have been deleted."""
    ttl = spec.ttl_seconds_after_finished
    if ttl is None or status.run.children_removed or not status.run.completion_time:
        return None
    return time_after(status.run.completion_time, ttl)


def seconds_left(spec: Spec, status: Status, now: datetime) -> float | None:
    """Return the seconds until the deletion: negative after it, None if the children are kept.

    `now` is rounded as times in status are, so that the result is the whole time in the reconcile that ends the run.
    """
    if spec.ttl_seconds_after_finished is None:
        return None
    end = due_at(spec, status)
    return 0.0 if end is None else (end - datetime.fromisoformat(rfc3339(now))).total_seconds()


def with_removal(status: Status, spec: Spec, observed: Observed) -> Status:
    """Record in the status of a run that has ended that all its children were deleted, so that nothing is due."""
    if spec.ttl_seconds_after_finished is None or observed.attempts:
        return status
    return status.with_run(children_removed=True)
