"""The watch of FineTuneJobs through Kopf. Its events add keys to the queue."""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from finetune_api import constants

from ..cache.job_cache import JobCache
from ..manifests import JobKey
from .queue import KeyedQueue


class _NothingKept(kopf.DiffBaseStorage):
    """Storage without content: Kopf copies every object for handlers that compare versions, which ours do not."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return the content to store: none."""
        return {}

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Return the stored content: none."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


def make_registry(
    queue: KeyedQueue[JobKey],
    cache: JobCache,
    on_event: Callable[[str], None],
    on_stop: Callable[[], Awaitable[None]],
) -> kopf.OperatorRegistry:
    """Handlers that feed the queue. Only `on.event`: no annotations, no finalizers, no state in Kopf.

    `on_event` is called with the kind of the object of every event. `on_stop` is called when Kopf stops, and must end
    the tasks that were started since: Kopf would wait five seconds for them.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.cleanup(registry=registry)
    async def stopping(**_: Any) -> None:
        await on_stop()

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    async def job_seen(type: str | None, body: kopf.Body, namespace: str | None, name: str | None, **_: Any) -> None:  # noqa: A002 Kopf's name
        on_event(constants.KIND)
        key = JobKey(namespace or "", name or "")
        if type == "DELETED":
            cache.remove(key)
            return
        cache.record(key, dict(body))
        # The watch event of a write may arrive before the response to the write.
        await queue.released(key)
        schedule(queue, cache, key)

    return registry


def schedule(queue: KeyedQueue[JobKey], cache: JobCache, key: JobKey) -> None:
    """Add a job that needs a reconcile to the queue, now or when something is due."""
    if cache.needs_reconcile(key):
        queue.add(key)
    elif (wait := cache.seconds_until_due(key)) is not None:
        queue.add_after(key, wait)


def make_settings(watch_silence_seconds: float) -> kopf.OperatorSettings:
    """Return the settings of Kopf. A watch without events or bookmarks for this time is opened again."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NothingKept()
    settings.watching.chunk_size = 500
    # Kopf keeps a task with the object for each event for this time. With the default of five seconds, it would keep
    # all objects of the cluster at the start.
    settings.queueing.idle_timeout = 0.05
    settings.watching.server_timeout = 300
    settings.watching.inactivity_timeout = watch_silence_seconds
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    return settings
