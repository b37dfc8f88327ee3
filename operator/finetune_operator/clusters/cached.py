"""A Cluster that uses watch events instead of live reads where they are sufficient."""

from collections.abc import Sequence

from ..cache.cached_view import CachedView
from ..cache.job_cache import JobCache
from ..manifests import JobKey, Manifest
from .api_server import ApiServer
from .kubernetes import KubernetesCluster


class CachedCluster(KubernetesCluster):
    """KubernetesCluster whose reads in a reconcile use a cached view if there is one."""

    def __init__(self, server: ApiServer, cache: JobCache) -> None:
        super().__init__(server, cache.record_write)
        self._cache = cache
        self._views: dict[JobKey, CachedView] = {}
        self._pods: dict[JobKey, tuple[Manifest, ...]] = {}

    async def get(self, key: JobKey) -> Manifest | None:
        """Return the FineTuneJob, or None. Only one reconcile of a key runs at a time."""
        self._views.pop(key, None)
        self._pods.pop(key, None)
        view = self._cache.cached_view(key)
        if view is None:
            return await super().get(key)
        self._views[key] = view
        return view.job

    async def list_jobs(self, key: JobKey, awaited: Sequence[str]) -> list[Manifest]:
        """Return its Jobs, from the cached view if `get` used it."""
        view = self._views.pop(key, None)
        if view is None:
            return await super().list_jobs(key, awaited)
        if view.pods is not None:
            self._pods[key] = view.pods
        return list(view.children)

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Return the pods of these Jobs, from the cached view if `list_jobs` used it."""
        pods = self._pods.pop(key, None)
        return await super().list_pods(key, jobs) if pods is None else list(pods)
