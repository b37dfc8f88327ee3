"""Times of `spec.schedule`. Pure."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from .v1alpha1.schedule import RunSchedule

_REPEATED = timedelta(hours=2)
"""More than the time that is repeated when daylight saving time ends."""
_EXAMPLE = "write minute, hour, day of the month, month and day of the week, such as 0 3 * * SUN"


def schedule_errors(schedule: RunSchedule) -> dict[str, str]:
    """Return field -> what it must be; empty if the times can be computed."""
    found = {}
    try:
        zone = ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of the database is an OSError
        zone = ZoneInfo("Etc/UTC")
        found["timeZone"] = (
            f"must be a time zone such as Europe/Berlin, not {schedule.time_zone!r}; write a name of the IANA database"
        )
    try:
        next(CronSim(schedule.cron, datetime(2026, 1, 1, tzinfo=zone)))
    except CronSimError as error:
        found["cron"] = f"must be a cron expression, not {schedule.cron!r} ({str(error).lower()}); {_EXAMPLE}"
    except StopIteration:
        found["cron"] = f"must have a time within the next 50 years, and {schedule.cron!r} has none; {_EXAMPLE}"
    return found


def time_following(schedule: RunSchedule, moment: datetime) -> datetime:
    """Return the first scheduled time after `moment`, in UTC. The schedule must have no errors."""
    # In the hour that a change from daylight saving time repeats, the first result can be before `moment`.
    times = CronSim(schedule.cron, moment.astimezone(ZoneInfo(schedule.time_zone)))
    return next(time.astimezone(UTC) for time in times if time.astimezone(UTC) > moment)


def latest_time(schedule: RunSchedule, moment: datetime) -> datetime:
    """Return the last scheduled time at or before `moment`, in UTC. The schedule must have no errors."""
    found: datetime | None = None
    start = (moment + _REPEATED).astimezone(ZoneInfo(schedule.time_zone))
    for time in CronSim(schedule.cron, start, reverse=True):
        at = time.astimezone(UTC)
        if at <= moment:
            found = at if found is None else max(found, at)
        # In the hour that a change from daylight saving time repeats, the results are not in order.
        if found is not None and at < moment - _REPEATED:
            break
    assert found is not None, "a schedule without errors has times in the past too"
    return found
