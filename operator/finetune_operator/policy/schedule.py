"""Runs that `spec.schedule` starts.

Status contains the next scheduled time. When it has passed, a run starts for the latest time that has passed, or none
if a run is in progress (Forbid) or the time is too long ago; then the following time is the next one. Unlike a CronJob,
it does not make up for a time that has passed during a run.
"""

from datetime import UTC, datetime

from finetune_api.clock import rfc3339
from finetune_api.cron import latest_time, time_following
from finetune_api.v1alpha1 import ConcurrencyPolicy, ScheduleStatus, Spec, Status


def with_schedule(status: Status, spec: Spec, now: datetime) -> Status:
    """Return the status with the next time of the schedule.

    A schedule that is new or was changed begins now: it does not start a run for times before.
    """
    if spec.schedule is None:
        return status if status.schedule is None else status.model_copy(update={"schedule": None})
    known = status.schedule
    if known is not None and (known.cron, known.time_zone) == (spec.schedule.cron, spec.schedule.time_zone):
        return status
    found = ScheduleStatus(
        cron=spec.schedule.cron,
        time_zone=spec.schedule.time_zone,
        next_time=rfc3339(time_following(spec.schedule, now)),
        last_time=None if known is None else known.last_time,
    )
    return status.model_copy(update={"schedule": found})


def starts_run(spec: Spec, status: Status, now: datetime) -> bool:
    """Whether a scheduled time has passed for which a run starts now."""
    if not _has_passed(spec, status, now) or spec.schedule is None:
        return False
    is_active = status.run.number > 0 and status.terminal_condition is None
    if is_active and spec.schedule.concurrency_policy is ConcurrencyPolicy.FORBID:
        return False
    limit = spec.schedule.starting_deadline_seconds
    return limit is None or (now - latest_time(spec.schedule, now)).total_seconds() <= limit


def with_time_passed(status: Status, spec: Spec, now: datetime, *, started: bool) -> Status:
    """Return the status after a scheduled time has passed; unchanged if none has. `started`: with a run."""
    if not _has_passed(spec, status, now) or spec.schedule is None or status.schedule is None:
        return status
    update = {"next_time": rfc3339(time_following(spec.schedule, now))}
    if started:
        update["last_time"] = rfc3339(latest_time(spec.schedule, now))
    return status.model_copy(update={"schedule": status.schedule.model_copy(update=update)})


def next_time(spec: Spec, status: Status) -> datetime | None:
    """Return when the next scheduled time must be handled; None: no time is due, or the job is suspended."""
    if spec.schedule is None or status.schedule is None or spec.suspend:
        return None
    return datetime.fromisoformat(status.schedule.next_time).astimezone(UTC)


def _has_passed(spec: Spec, status: Status, now: datetime) -> bool:
    due_at = next_time(spec, status)
    return due_at is not None and due_at <= now
