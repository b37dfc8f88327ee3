"""The Cluster of a real API server beside watches: a pass that needs no live look gets none."""

from collections.abc import Sequence

from ..cache.cached_view import CachedView
from ..cache.job_cache import JobCache
from ..manifests import JobKey, Manifest
from .api_server import ApiServer
from .kubernetes import KubernetesCluster


class CachedCluster(KubernetesCluster):
    """The reads of one pass, in their order: what the watches have shown where that is enough, else live."""

    def __init__(self, server: ApiServer, table: JobCache) -> None:
        super().__init__(server, table.wrote)
        self._table = table
        self._glimpses: dict[JobKey, CachedView] = {}
        self._pods: dict[JobKey, tuple[Manifest, ...]] = {}

    async def get(self, key: JobKey) -> Manifest | None:
        """The FineTuneJob, or None. A key is in one pass at a time."""
        self._glimpses.pop(key, None)
        self._pods.pop(key, None)
        glimpse = self._table.glimpse(key)
        if glimpse is None:
            return await super().get(key)
        self._glimpses[key] = glimpse
        return glimpse.job

    async def list_jobs(self, key: JobKey, awaited: Sequence[str]) -> list[Manifest]:
        """Its Jobs; where the object was shown, those that were shown with it."""
        glimpse = self._glimpses.pop(key, None)
        if glimpse is None:
            return await super().list_jobs(key, awaited)
        if glimpse.pods is not None:
            self._pods[key] = glimpse.pods
        return list(glimpse.children)

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Their pods; those that were shown with the Jobs."""
        pods = self._pods.pop(key, None)
        return await super().list_pods(key, jobs) if pods is None else list(pods)
