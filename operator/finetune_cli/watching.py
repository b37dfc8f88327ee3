"""The loop of `finetune watch`: read, show, sleep, until the job has ended or is suspended."""

import asyncio
import time
from collections.abc import Callable

from finetune_api.v1alpha1 import FineTuneJob

from .cluster.lenient_job import is_observed, is_settled, lenient_job
from .cluster.retry import Pause, Retry
from .display import Display
from .job_sources import JobSource

_POLL_SECONDS = 1.0
"""The operator updates progress every few seconds, and phases and attempts may change in between."""

_UNOBSERVED_SECONDS = 20.0
"""A running operator reconciles a new object within this time."""


async def watch_job(
    source: JobSource, display: Display, *, pause: Pause = asyncio.sleep, clock: Callable[[], float] = time.monotonic
) -> FineTuneJob | None:
    """Return the job when it has ended or is suspended, or None if it has not ended but no process runs it.

    The display gets the progress that is stored in status, because the progress endpoint of pods cannot be reached from
    outside the cluster.
    """
    retry = Retry(display.event, pause=pause)
    unobserved_since: float | None = clock()
    while True:
        is_interrupted = source.is_interrupted()
        job = lenient_job(await retry.call(source.read))
        if is_settled(job):
            display.finish(job)
            return job
        display.update(job, None)
        if is_interrupted:
            return None
        if is_observed(job):
            unobserved_since = None
        elif unobserved_since is not None and clock() - unobserved_since > _UNOBSERVED_SECONDS:
            display.event("the operator has not reconciled the object yet; check that it is running")
            unobserved_since = None
        await pause(_POLL_SECONDS)
