"""Administrator access to one namespace for tests that poll: an API request instead of a kubectl process."""

import asyncio
from pathlib import Path
from typing import Any

from finetune_api.constants import API_VERSION
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.clusters.kubernetes import path_of
from finetune_operator.errors import ApiError, StaleError
from loop_thread import LoopThread

Manifest = dict[str, Any]
_GROUPS = {"finetunejobs": API_VERSION, "jobs": "batch/v1"}
"""API group of each plural; all others are in the core group."""


class Objects:
    """Objects of a namespace, by plural and name."""

    def __init__(self, loop: LoopThread, admin: Path, namespace: str) -> None:
        self._loop, self.namespace = loop, namespace
        self._server = loop.run(ApiServer.connect(admin))

    def close(self) -> None:
        self._loop.run(self._server.close())

    def _path(self, plural: str, name: str = "") -> str:
        return path_of(_GROUPS.get(plural, "v1"), plural, self.namespace, name)

    def items(self, plural: str, **query: str) -> list[Manifest]:
        found: list[Manifest] = self._loop.run(self._server.request("GET", self._path(plural), **query))["items"]
        return found

    def names(self, plural: str, *starts: str) -> list[str]:
        """Sorted names; with `starts`, only those with one of these prefixes."""
        names = (item["metadata"]["name"] for item in self.items(plural))
        return sorted(name for name in names if not starts or name.startswith(starts))

    def get(self, plural: str, name: str) -> Manifest | None:
        try:
            return self._loop.run(self._server.request("GET", self._path(plural, name)))
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    def create(self, plural: str, *manifests: Manifest) -> None:
        async def create_all() -> None:
            await asyncio.gather(*(self._server.request("POST", self._path(plural), one) for one in manifests))

        self._loop.run(create_all())

    def annotate(self, plural: str, name: str, **annotations: str) -> None:
        """Set annotations, with retries on conflicts."""
        while True:
            found = self.get(plural, name)
            assert found is not None
            found["metadata"].setdefault("annotations", {}).update(annotations)
            try:
                self._loop.run(self._server.request("PUT", self._path(plural, name), found))
            except StaleError:
                continue
            return

    def write_status(self, plural: str, manifest: Manifest) -> None:
        """Write the status of the object that was read."""
        path = self._path(plural, manifest["metadata"]["name"])
        self._loop.run(self._server.request("PUT", f"{path}/status", manifest))

    def delete(self, plural: str, name: str) -> None:
        """Delete in the background, without waiting."""
        path = self._path(plural, name)
        self._loop.run(self._server.request("DELETE", path, {"propagationPolicy": "Background"}))

    def event_reasons(self, name: str) -> list[str]:
        """Reasons of the Events on a FineTuneJob, sorted."""
        selector = f"involvedObject.name={name},involvedObject.kind=FineTuneJob"
        return sorted(event["reason"] for event in self.items("events", fieldSelector=selector))
