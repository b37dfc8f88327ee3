"""The time of day, and how it is written."""

from datetime import UTC, datetime
from typing import Literal


def utc_now() -> datetime:
    """The time of this machine's clock, in UTC."""
    return datetime.now(UTC)


def rfc3339(moment: datetime, timespec: Literal["milliseconds", "seconds"] = "milliseconds") -> str:
    """A moment in UTC as Kubernetes writes times: `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
