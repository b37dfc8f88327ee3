"""Workers: take a key, reconcile it, say when to look again. A failure waits and is tried again; nothing ends them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from ..clusters import Cluster
from ..errors import ApiError, ApiUnreachableError, StaleError
from ..manifests import JobKey
from ..reconcile import Look, Outcome, reconcile
from ..settings import OperatorSettings
from .metrics import Metrics
from .queue import KeyedQueue

LOG = logging.getLogger(__name__)

_STALE_SECONDS = 0.2
"""A write that met a newer object: the watch brings that one within this time."""

_TIMED_PASSES_PER_SECOND = 20.0
"""Running jobs are looked at by time, all of them together this often at most: a pass costs the API server three reads
and a write. Up to a hundred that run, each one's progress is as fresh as the settings say."""

_WAITING_PASSES_PER_SECOND = 5.0
"""The same for jobs that wait for their cluster, which may be hundreds for hours."""

_TIMED_SHARE = 0.1
"""What these passes may take of the workers' time: an API server that answers slowly is asked less."""

_REMEMBERED = 0.9
"""How much of the mean length of a pass is that of the passes before the last one."""


class Workers:
    """Some workers on one queue."""

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
        self._count = 1
        self._mean_seconds = 0.0
        self._looks: dict[JobKey, Look] = {}
        """Jobs that are looked at by time, and what for."""

    def longest_seconds(self) -> float:
        """How long the longest pass that is under way has taken so far."""
        now = time.monotonic()
        return max((now - since for since in self._since.values()), default=0.0)

    @property
    def active(self) -> int:
        """Passes that are under way."""
        return len(self._since)

    async def run(self, count: int) -> None:
        """Work until cancelled."""
        self._count = count
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            started = self._since[key] = time.monotonic()
            try:
                result = await self._pass(key)
            finally:
                del self._since[key]
                self._queue.done(key)
            took = time.monotonic() - started
            self._mean_seconds += (1 - _REMEMBERED) * (took - self._mean_seconds)
            self._metrics.reconciled(result, took)

    async def _pass(self, key: JobKey) -> str:
        """One pass; its result as the metrics name it."""
        try:
            outcome = await reconcile(self._cluster, key, self._paced(), self._now())
        except StaleError:
            self._queue.add_after(key, _STALE_SECONDS)
            return "requeue"
        except (ApiError, ApiUnreachableError) as error:
            self._metrics.retried()
            wait = self._queue.retry(key, at_least=getattr(error, "retry_after", None) or 0.0)
            LOG.warning("the API server: %s; again in %.1f s", error, wait, extra=fields_of(key))
            return "error"
        except Exception:
            self._metrics.retried()
            wait = self._queue.retry(key)
            LOG.exception("a pass failed; again in %.1f s", wait, extra=fields_of(key))
            return "error"
        self._queue.forget(key)
        return self._concluded(key, outcome)

    def _paced(self) -> OperatorSettings:
        """The settings; where many jobs run, or wait, each of them is looked at less often.

        What is due at a time of its own, such as the removal of a finished job's children, takes nothing from these.
        """
        return paced(self._settings, Counter(self._looks.values()), self._mean_seconds, self._count)

    def _concluded(self, key: JobKey, outcome: Outcome | None) -> str:
        if outcome is None or outcome.requeue_after is None or outcome.look is Look.DUE:
            self._looks.pop(key, None)
        else:
            self._looks[key] = outcome.look
        if outcome is None:
            return "success"
        self._metrics.turned(outcome.before, outcome.status)
        if outcome.status.phase != outcome.before.phase:
            LOG.info("%s", outcome.status.phase, extra=fields_of(key, outcome))
        if outcome.requeue_after is None:
            return "success"
        self._queue.add_after(key, outcome.requeue_after)
        return "requeue_after"


def paced(settings: OperatorSettings, looks: Mapping[Look, int], pass_seconds: float, workers: int) -> OperatorSettings:
    """The settings for so many jobs that are looked at by time."""
    progress = fair_wait(looks.get(Look.PROGRESS, 0), pass_seconds, workers)
    waiting = fair_wait(looks.get(Look.WAITING, 0), pass_seconds, workers, _WAITING_PASSES_PER_SECOND)
    return replace(
        settings,
        progress_seconds=max(settings.progress_seconds, progress),
        waiting_seconds=max(settings.waiting_seconds, waiting),
    )


def fair_wait(
    jobs: int, pass_seconds: float, workers: int, passes_per_second: float = _TIMED_PASSES_PER_SECOND
) -> float:
    """Seconds between two looks at each of so many jobs, so that all of them together cost no more than they may."""
    return jobs * max(1 / passes_per_second, pass_seconds / (_TIMED_SHARE * workers))


def fields_of(key: JobKey, outcome: Outcome | None = None) -> dict[str, object]:
    """What a log line about a job carries beside its text."""
    fields: dict[str, object] = {"namespace": key.namespace, "job": key.name}
    if outcome is not None:
        status = outcome.status
        fields |= {
            "uid": outcome.uid,
            "run": status.run.number,
            "stage": status.run.stage,
            "attempt": status.run.attempt,
        }
    return fields
