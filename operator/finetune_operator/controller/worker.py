"""Workers, which reconcile keys and schedule the next reconcile. Failures are retried with back-off."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from ..clusters import Cluster
from ..errors import ApiError, ApiUnreachableError, StaleError
from ..manifests import JobKey
from ..policy.actions import RequeueReason
from ..reconcile import ReconcileResult, reconcile
from ..settings import OperatorSettings
from .metrics import Metrics
from .queue import KeyedQueue

LOG = logging.getLogger(__name__)

_STALE_SECONDS = 0.2
"""Delay after a write conflict, in which the watch delivers the newer object."""

_TIMED_PASSES_PER_SECOND = 20.0
"""Maximum rate of periodic reconciles of running jobs, each of which needs three reads and a write. Up to a hundred
running jobs are reconciled at the interval of the settings."""

_WAITING_PASSES_PER_SECOND = 5.0
"""The same for jobs that wait for the cluster, which may be hundreds for hours."""

_TIMED_SHARE = 0.1
"""Maximum share of the workers' time for periodic reconciles, so that a slow API server gets fewer requests."""

_FINISH_SECONDS = 2.0

_REMEMBERED = 0.9
"""Weight of earlier reconciles in the moving average of their duration."""


class Workers:
    """Workers of one queue."""

    def __init__(
        self,
        cluster: Cluster,
        queue: KeyedQueue[JobKey],
        settings: OperatorSettings,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster, self._queue, self._settings, self._metrics = cluster, queue, settings, metrics
        self._now = now
        self._since: dict[JobKey, float] = {}
        self._idle = asyncio.Event()
        self._is_finishing = False
        self._count = 1
        self._mean_seconds = 0.0
        self._requeued: dict[JobKey, RequeueReason] = {}
        """Jobs that are reconciled periodically, and why."""

    def longest_seconds(self) -> float:
        """Return how long the oldest reconcile in progress has taken so far."""
        now = time.monotonic()
        return max((now - since for since in self._since.values()), default=0.0)

    @property
    def active(self) -> int:
        """Number of reconciles in progress."""
        return len(self._since)

    async def run(self, count: int) -> None:
        """Work until cancelled."""
        self._count = count
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._work())

    async def finish(self) -> None:
        """Take no more keys, and wait for the reconciles in progress, for at most two seconds. The next operator
        repeats an interrupted reconcile, but cannot know of an Event that it left out."""
        self._is_finishing = True
        if self._since:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FINISH_SECONDS):
                    await self._idle.wait()

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            if self._is_finishing:
                self._queue.done(key)
                return
            started = self._since[key] = time.monotonic()
            try:
                result = await self._pass(key)
            finally:
                del self._since[key]
                self._queue.done(key)
                if not self._since:
                    self._idle.set()
            took = time.monotonic() - started
            self._mean_seconds += (1 - _REMEMBERED) * (took - self._mean_seconds)
            self._metrics.reconciled(result, took)

    async def _pass(self, key: JobKey) -> str:
        """Reconcile once. Returns the result as the label of the metric."""
        try:
            result = await reconcile(self._cluster, key, self._paced(), self._now())
        except StaleError:
            self._queue.add_after(key, _STALE_SECONDS)
            return "requeue"
        except (ApiError, ApiUnreachableError) as error:
            self._metrics.retried()
            wait = self._queue.retry(key, at_least=getattr(error, "retry_after", None) or 0.0)
            LOG.warning("request to the API server failed: %s; retrying in %.1f s", error, wait, extra=fields_of(key))
            return "error"
        except Exception:
            self._metrics.retried()
            wait = self._queue.retry(key)
            LOG.exception("reconcile failed; retrying in %.1f s", wait, extra=fields_of(key))
            return "error"
        self._queue.forget(key)
        return self._record_result(key, result)

    def _paced(self) -> OperatorSettings:
        """Return the settings with longer intervals if many jobs are running or waiting.

        Jobs with a due time, such as the deletion of children after the TTL, do not count.
        """
        return paced(self._settings, Counter(self._requeued.values()), self._mean_seconds, self._count)

    def _record_result(self, key: JobKey, result: ReconcileResult | None) -> str:
        if result is None or result.requeue_after is None or result.requeue.reason is RequeueReason.DUE:
            self._requeued.pop(key, None)
        else:
            self._requeued[key] = result.requeue.reason
        if result is None:
            return "success"
        self._metrics.record_transition(result.before, result.status)
        if result.status.phase != result.before.phase:
            LOG.info("%s", result.status.phase, extra=fields_of(key, result))
        if result.requeue_after is None:
            return "success"
        self._queue.add_after(key, result.requeue_after)
        return "requeue_after"


def paced(
    settings: OperatorSettings, requeued: Mapping[RequeueReason, int], pass_seconds: float, workers: int
) -> OperatorSettings:
    """Return the settings for these numbers of periodically reconciled jobs."""
    progress = fair_wait(requeued.get(RequeueReason.PROGRESS, 0), pass_seconds, workers)
    waiting = fair_wait(requeued.get(RequeueReason.WAITING, 0), pass_seconds, workers, _WAITING_PASSES_PER_SECOND)
    return replace(
        settings,
        progress_seconds=max(settings.progress_seconds, progress),
        waiting_seconds=max(settings.waiting_seconds, waiting),
    )


def fair_wait(
    jobs: int, pass_seconds: float, workers: int, passes_per_second: float = _TIMED_PASSES_PER_SECOND
) -> float:
    """Return the seconds between two reconciles of a job that keep the total rate of `jobs` jobs within its limits."""
    return jobs * max(1 / passes_per_second, pass_seconds / (_TIMED_SHARE * workers))


def fields_of(key: JobKey, result: ReconcileResult | None = None) -> dict[str, object]:
    """Return the additional fields of a log line about a job."""
    fields: dict[str, object] = {"namespace": key.namespace, "job": key.name}
    if result is not None:
        status = result.status
        fields |= {
            "uid": result.uid,
            "run": status.run.number,
            "stage": status.run.stage,
            "attempt": status.run.attempt,
        }
    return fields
