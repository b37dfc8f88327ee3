"""Whether the operator works, not only whether it lives: age of the queue, of a pass, of the watches, of the loop."""

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
    """What the probes know. `problems` is empty while all is well."""

    queue: KeyedQueue[JobKey]
    longest_pass: Callable[[], float]
    metrics: Metrics
    list_seconds: float
    _beat: float = field(default_factory=time.monotonic)
    _listed: float = field(default_factory=time.monotonic)
    _behind: int = 0
    _heard: dict[str, float] = field(default_factory=lambda: dict.fromkeys((constants.KIND, "Job"), time.monotonic()))

    def heard(self, kind: str) -> None:
        """A watch has shown an object of this kind."""
        self._heard[kind] = time.monotonic()

    def silences(self) -> dict[str, float]:
        """Kind -> seconds since a watch has shown one, or since the start."""
        now = time.monotonic()
        return {kind: now - at for kind, at in self._heard.items()}

    def problems(self) -> tuple[str, ...]:
        """Why the operator should be started again, in words."""
        now = time.monotonic()
        checks = (
            (self.queue.oldest_seconds() > _QUEUE_SECONDS, "a key has waited for two minutes"),
            (self.longest_pass() > _PASS_SECONDS, "a pass has taken five minutes"),
            (now - self._beat > _LAG_SECONDS, "the event loop stands still"),
            (now - self._listed > 3 * self.list_seconds + _LAG_SECONDS, "objects could not be listed three times"),
            (self._behind >= _MISSED_LISTS, "the watch shows other objects than a list, three times"),
        )
        return tuple(text for holds, text in checks if holds)

    async def beat(self) -> None:
        """Measure how late the event loop runs, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
            self._beat = time.monotonic()
            self.metrics.loop_lag.set(max(0.0, self._beat - before - _BEAT_SECONDS))

    async def resync(self, cluster: KubernetesCluster, table: JobCache, namespaces: tuple[str, ...]) -> None:
        """List all objects from time to time: what the watches have missed is looked at, and counted against them."""
        while True:
            await asyncio.sleep(self.list_seconds * random.uniform(0.8, 1.2))
            try:
                missed = await self._missed(cluster, table, namespaces)
            except OperatorError as error:
                LOG.warning("objects cannot be listed: %s", error)
                continue
            self._behind = self._behind + 1 if missed else 0
            for key in missed:
                self.queue.add(key)

    async def _missed(
        self, cluster: KubernetesCluster, table: JobCache, namespaces: tuple[str, ...]
    ) -> tuple[JobKey, ...]:
        before = table.versions()
        listed = await cluster.list_versions(namespaces)
        self._listed = time.monotonic()
        await asyncio.sleep(_BEAT_SECONDS)  # what is just on its way is not missed
        missed = table.missed(before, listed)
        for key in missed:
            # A list may come from a server that lags behind, and what it leaves out the watch would not show again.
            if key not in listed and await cluster.get_live(key) is None:
                table.remove(key)
        return missed
