"""`finetune watch`, without the command line: read, show, sleep, until the job has ended or is suspended."""

import asyncio
import time
from collections.abc import Callable

from finetune_api.v1alpha1 import FineTuneJob

from .cluster.lenient_job import is_seen, is_settled, lenient_job
from .cluster.retry import Pause, Retry
from .display import Display
from .places import JobPlace

_LOOK_SECONDS = 1.0
"""The operator pulls progress every few seconds; phases and attempts turn in between."""

_UNSEEN_SECONDS = 20.0
"""Time in which a running operator would have reconciled the object."""


async def watch_job(
    place: JobPlace, display: Display, *, pause: Pause = asyncio.sleep, clock: Callable[[], float] = time.monotonic
) -> FineTuneJob | None:
    """Return the job when it has ended or is suspended. None: it has not, but no process runs it.

    Status holds what the trainer has answered to the operator; that is what the display gets, pods are out of reach.
    """
    retry = Retry(display.event, pause=pause)
    unseen_since: float | None = clock()
    while True:
        is_left = place.is_left()
        job = lenient_job(await retry.call(place.read))
        if is_settled(job):
            display.finish(job)
            return job
        display.update(job, None)
        if is_left:
            return None
        if is_seen(job):
            unseen_since = None
        elif unseen_since is not None and clock() - unseen_since > _UNSEEN_SECONDS:
            display.event("the operator has not reconciled the object yet; check that it is running")
            unseen_since = None
        await pause(_LOOK_SECONDS)
