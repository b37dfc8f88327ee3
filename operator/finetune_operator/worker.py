"""Workers: take a key, reconcile it, say when to look again. A failure waits and is tried again; nothing ends them."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from finetune_api.v1alpha1 import Status

from .clusters import Cluster
from .errors import ApiError, ApiUnreachableError, StaleError
from .manifests import JobKey
from .metrics import Metrics
from .queue import KeyedQueue
from .reconcile import Outcome, reconcile
from .settings import OperatorSettings

LOG = logging.getLogger(__name__)

_STALE_SECONDS = 0.2
"""A write that met a newer object: the watch brings that one within this time."""


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

    def longest_seconds(self) -> float:
        """How long the longest pass that is under way has taken so far."""
        now = time.monotonic()
        return max((now - since for since in self._since.values()), default=0.0)

    async def run(self, count: int) -> None:
        """Work until cancelled."""
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
            self._metrics.reconciled(result, time.monotonic() - started)

    async def _pass(self, key: JobKey) -> str:
        """One pass; its result as the metrics name it."""
        try:
            outcome = await reconcile(self._cluster, key, self._settings, self._now())
        except StaleError:
            self._queue.add_after(key, _STALE_SECONDS)
            return "requeue"
        except (ApiError, ApiUnreachableError) as error:
            wait = self._queue.retry(key, at_least=getattr(error, "retry_after", None) or 0.0)
            LOG.warning("the API server: %s; again in %.1f s", error, wait, extra=fields_of(key))
            return "error"
        except Exception:
            wait = self._queue.retry(key)
            LOG.exception("a pass failed; again in %.1f s", wait, extra=fields_of(key))
            return "error"
        self._queue.forget(key)
        return self._concluded(key, outcome)

    def _concluded(self, key: JobKey, outcome: Outcome | None) -> str:
        if outcome is None:
            return "success"
        ended = {attempt.job_name for attempt in outcome.before.attempts if attempt.outcome}
        for attempt in outcome.status.attempts:
            if attempt.outcome and attempt.job_name not in ended:
                self._metrics.attempt_ended(attempt.stage, attempt.outcome)
        if outcome.status.phase != outcome.before.phase:
            LOG.info("%s", outcome.status.phase, extra=fields_of(key, outcome.status))
        if outcome.requeue_after is None:
            return "success"
        self._queue.add_after(key, outcome.requeue_after)
        return "requeue_after"


def fields_of(key: JobKey, status: Status | None = None) -> dict[str, object]:
    """What a log line about a job carries beside its text."""
    fields: dict[str, object] = {"namespace": key.namespace, "job": key.name}
    if status is not None:
        fields |= {"run": status.run, "stage": status.stage, "attempt": status.attempt}
    return fields
