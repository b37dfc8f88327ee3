"""Liveness of the operator: age of the queue, of reconciles, of lists, and lag of the event loop."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api import constants

from ..cache.job_cache import JobCache
from ..clusters.kubernetes import KubernetesCluster
from ..errors import OperatorError
from ..manifests import JobKey
from .metrics import Metrics
from .queue import KeyedQueue

LOG = logging.getLogger(__name__)

_QUEUE_SECONDS = 120.0
_PASS_SECONDS = 300.0
_LAG_SECONDS = 30.0
_MISSED_LISTS = 3
_BEAT_SECONDS = 1.0


@dataclass
class Health:
    """State of the probes. `problems` is empty while the operator is healthy."""

    queue: KeyedQueue[JobKey]
    longest_pass: Callable[[], float]
    metrics: Metrics
    list_seconds: float
    _beat: float = field(default_factory=time.monotonic)
    _listed: float = field(default_factory=time.monotonic)
    _behind: int = 0
    _heard: dict[str, float] = field(default_factory=lambda: dict.fromkeys((constants.KIND, "Job"), time.monotonic()))

    def record_event(self, kind: str) -> None:
        """Record an event of a watch of this kind."""
        self._heard[kind] = time.monotonic()

    def silences(self) -> dict[str, float]:
        """Return kind -> seconds since the last event of its watch, or since the start."""
        now = time.monotonic()
        return {kind: now - at for kind, at in self._heard.items()}

    def problems(self) -> tuple[str, ...]:
        """Return the reasons why the operator must be restarted."""
        now = time.monotonic()
        checks = (
            (self.queue.oldest_seconds() > _QUEUE_SECONDS, "a key has waited in the queue for more than two minutes"),
            (self.longest_pass() > _PASS_SECONDS, "a reconcile has taken more than five minutes"),
            (now - self._beat > _LAG_SECONDS, "the event loop is blocked"),
            (now - self._listed > 3 * self.list_seconds + _LAG_SECONDS, "listing objects has failed three times"),
            (self._behind >= _MISSED_LISTS, "watch and list have returned different objects three times"),
        )
        return tuple(text for holds, text in checks if holds)

    async def beat(self) -> None:
        """Measure the lag of the event loop, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
            self._beat = time.monotonic()
            self.metrics.loop_lag.set(max(0.0, self._beat - before - _BEAT_SECONDS))

    async def resync(self, cluster: KubernetesCluster, cache: JobCache, namespaces: tuple[str, ...]) -> None:
        """List all objects periodically, reconcile those that the watch has missed, and count these lists."""
        while True:
            await asyncio.sleep(self.list_seconds * random.uniform(0.8, 1.2))
            try:
                missed = await self._missed(cluster, cache, namespaces)
            except OperatorError as error:
                LOG.warning("listing objects failed: %s", error)
                continue
            self._behind = self._behind + 1 if missed else 0
            for key in () if cache.is_standby else missed:
                self.queue.add(key)

    async def _missed(
        self, cluster: KubernetesCluster, cache: JobCache, namespaces: tuple[str, ...]
    ) -> tuple[JobKey, ...]:
        before = cache.versions()
        listed = await cluster.list_versions(namespaces)
        self._listed = time.monotonic()
        await asyncio.sleep(_BEAT_SECONDS)  # events may be on their way
        missed = cache.missed(before, listed)
        for key in missed:
            # A list may be outdated, and the watch would not send an object again that is removed here by mistake.
            if key not in listed and await cluster.get_live(key) is None:
                cache.remove(key)
        return missed
