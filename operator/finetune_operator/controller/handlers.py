"""Kopf's part: the watch of FineTuneJobs. What it shows goes into the queue; nothing is decided here."""

from collections.abc import Callable
from typing import Any

import kopf

from finetune_api import constants

from ..cache.job_cache import JobCache
from ..manifests import JobKey
from .queue import KeyedQueue


class _NothingKept(kopf.DiffBaseStorage):
    """For handlers that ask what has changed, Kopf copies each object of each event. Ours do not ask."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """What a later event would be compared with."""
        return {}

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """What was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is."""


def make_registry(
    queue: KeyedQueue[JobKey], table: JobCache, heard: Callable[[str], None] = lambda _: None
) -> kopf.OperatorRegistry:
    """Handlers that feed the queue. Only `on.event`: no annotations, no finalizers, no state in Kopf.

    `heard` is told the kind of every object that a watch shows.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    async def job_seen(type: str | None, body: kopf.Body, namespace: str | None, name: str | None, **_: Any) -> None:  # noqa: A002 Kopf's name
        heard(constants.KIND)
        key = JobKey(namespace or "", name or "")
        if type == "DELETED":
            table.remove(key)
            return
        table.show(key, dict(body))
        # The watch may be faster than the answer to the write that it shows.
        await queue.released(key)
        if table.needs_look(key):
            queue.add(key)
        elif (wait := table.wakes_in(key)) is not None:
            queue.add_after(key, wait)

    return registry


def make_settings(watch_silence_seconds: float) -> kopf.OperatorSettings:
    """How Kopf watches. A watch that brings nothing for so long, no bookmark either, is opened anew."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NothingKept()
    settings.watching.chunk_size = 500
    # How long Kopf keeps a task, and the object with it, for each object that it has shown: by default five seconds,
    # which is all objects of a cluster at a start.
    settings.queueing.idle_timeout = 0.05
    settings.watching.server_timeout = 300
    settings.watching.inactivity_timeout = watch_silence_seconds
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    return settings
