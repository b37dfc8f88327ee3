"""The current time and its text format."""

from datetime import UTC, datetime, timedelta
from typing import Literal


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def time_after(stamp: str, seconds: float) -> datetime:
    """Return the time `seconds` after an RFC 3339 time. Raises ValueError if `stamp` is not one."""
    return datetime.fromisoformat(stamp) + timedelta(seconds=seconds)


def rfc3339(moment: datetime, timespec: Literal["milliseconds", "seconds"] = "milliseconds") -> str:
    """Format a time in UTC as Kubernetes does: `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
