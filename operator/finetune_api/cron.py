"""Times of `spec.schedule`. Pure."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from .v1alpha1.schedule import RunSchedule

_EXAMPLE = "write minute, hour, day of the month, month and day of the week, such as 0 3 * * SUN"


def schedule_errors(schedule: RunSchedule) -> dict[str, str]:
    """Return field -> what it must be; empty if the times can be computed."""
    found = {}
    try:
        zone = ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of the database is an OSError
        zone = ZoneInfo("Etc/UTC")
        found["timeZone"] = f"must be a time zone such as Europe/Berlin, not {schedule.time_zone!r}"
    try:
        next(CronSim(schedule.cron, datetime(2026, 1, 1, tzinfo=zone)))
    except CronSimError as error:
        found["cron"] = f"must be a cron expression, not {schedule.cron!r} ({str(error).lower()}); {_EXAMPLE}"
    except StopIteration:
        found["cron"] = f"must have a time within the next 50 years, and {schedule.cron!r} has none; {_EXAMPLE}"
    return found


def time_following(schedule: RunSchedule, moment: datetime) -> datetime:
    """Return the first scheduled time after `moment`, in UTC. The schedule must have no errors."""
    return next(CronSim(schedule.cron, moment.astimezone(ZoneInfo(schedule.time_zone)))).astimezone(UTC)


def latest_time(schedule: RunSchedule, moment: datetime) -> datetime:
    """Return the last scheduled time at or before `moment`, in UTC. The schedule must have no errors."""
    zone = ZoneInfo(schedule.time_zone)
    whole = moment.astimezone(zone).replace(microsecond=0)
    # The iteration excludes its start, which may be a scheduled time itself: start one microsecond later.
    found = next(CronSim(schedule.cron, whole.replace(microsecond=1), reverse=True))
    return found.astimezone(UTC)
