"""`spec.schedule`: times at which the job is trained again."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .base import ApiModel, matching
from .scope import Scope


class ConcurrencyPolicy(StrEnum):
    """What happens at a scheduled time while a run is in progress."""

    FORBID = "Forbid"
    REPLACE = "Replace"


class RunSchedule(ApiModel, scope=Scope.NOW):
    """Times at which a new run of the same spec starts, which prepares the data again. Only in a cluster.

    The first run starts when the job is created. While `spec.suspend` is true, no run is started; afterwards, one run
    makes up for all missed times, as in a CronJob.
    """

    cron: Annotated[
        str,
        matching(
            r"^\s*\S+(\s+\S+){4}\s*$",
            "minute, hour, day of the month, month and day of the week, such as 0 3 * * SUN",
            max_length=100,
        ),
    ]
    """Minute, hour, day of the month, month and day of the week, such as `0 3 * * SUN`."""

    time_zone: Annotated[
        str, matching(r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", "a time zone such as Europe/Berlin", max_length=64)
    ] = "Etc/UTC"
    """Time zone of these times, such as Europe/Berlin."""

    concurrency_policy: ConcurrencyPolicy = ConcurrencyPolicy.FORBID
    """What happens at a scheduled time while a run is in progress. Forbid: it continues, and no run is started for this
    time. Replace: it saves a checkpoint and stops, and the new run starts."""

    starting_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """A run that could not be started within this time, for example because the operator was not running, is not
    started. Absent: it is started however late it is."""
