"""Kopf's part: two watches. What they show goes into the queue; nothing is decided here."""

from typing import Any

import kopf

from finetune_api import constants

from .manifests import JobKey
from .queue import KeyedQueue
from .table import JobTable, tells_of_an_end

_COALESCE_SECONDS = 0.2
"""A Job that goes changes several times within a moment; one look at the end of it is enough."""


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


def make_registry(queue: KeyedQueue[JobKey], table: JobTable) -> kopf.OperatorRegistry:
    """Handlers that feed the queue. Only `on.event`: no annotations, no finalizers, no state in Kopf."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    async def job_seen(type: str | None, body: kopf.Body, namespace: str | None, name: str | None, **_: Any) -> None:  # noqa: A002 Kopf's name
        key = JobKey(namespace or "", name or "")
        if type == "DELETED":
            table.remove(key)
        elif table.show(key, dict(body)):
            queue.add(key)

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def child_seen(type: str | None, body: kopf.Body, namespace: str | None, **_: Any) -> None:  # noqa: A002 Kopf's name
        key = JobKey(namespace or "", body.metadata.labels.get(constants.LABEL_JOB, ""))
        if key.name and tells_of_an_end(type, body) and not table.rests(key):
            queue.add_after(key, _COALESCE_SECONDS)

    return registry


def make_settings() -> kopf.OperatorSettings:
    """How Kopf watches."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NothingKept()
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["batch", "v1", "jobs"] = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
    settings.watching.server_timeout = 300  # a watch that went silent is opened anew
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    return settings
