"""A watch that starts without a list and is opened again after errors. Missed events are handled by the caller."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from finetune_api.backoff import backoff_seconds

from ..clusters.api_server import ApiServer
from ..clusters.kubernetes import METADATA_OF_ALL
from ..errors import ApiError, ApiUnreachableError
from ..manifests import Manifest

LOG = logging.getLogger(__name__)

_SERVER_SECONDS = 300
"""Duration of a watch request, so that it is periodically opened on another API server."""
_FIRST_WAIT_SECONDS = 0.5
_MAX_WAIT_SECONDS = 30.0


@dataclass
class Watch:
    """A watch of the objects of one kind."""

    server: ApiServer
    path: str
    """Path of the collection."""
    selectors: Mapping[str, str]
    """Selectors of the objects: `labelSelector`, `fieldSelector`."""
    silence_seconds: float
    """Time without an event or bookmark after which the connection is closed."""
    shown: Callable[[str, Manifest], None]
    """Called with the type and the object of every event."""
    began: Callable[[], None] = lambda: None
    """Called when the watch starts at a new version. Events before it are not received."""
    _version: str = ""
    """Version up to which all events were received; empty: unknown."""
    _failures: int = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._begin()
                await self._follow()
            except ApiError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    self._version = ""  # the version is too old, or of another server
                await self._wait(error, error.retry_after or 0.0)
            except ApiUnreachableError as error:
                await self._wait(error, 0.0)

    async def _begin(self) -> None:
        """Start at the current version, from a list of one object."""
        newest = await self.server.request("GET", self.path, accept=METADATA_OF_ALL, limit=1)
        self._version = newest["metadata"]["resourceVersion"]
        self.began()

    async def _follow(self) -> None:
        """Receive events until the server closes the connection."""
        begin = {"resourceVersion": self._version, "timeoutSeconds": str(_SERVER_SECONDS)}
        events = self.server.watch(self.path, silence_seconds=self.silence_seconds, **self.selectors, **begin)
        async with contextlib.aclosing(events):
            async for event in events:
                found: Manifest = event["object"]
                self._version = found["metadata"]["resourceVersion"]
                self._failures = 0
                if event["type"] != "BOOKMARK":
                    self._show(event["type"], found)

    def _show(self, event: str, found: Manifest) -> None:
        """Call the handler. An exception for one object must not end the watch."""
        try:
            self.shown(event, found)
        except Exception:
            LOG.exception("watch of %s: the handler failed, the object is skipped", self.path)

    async def _wait(self, error: Exception, at_least: float) -> None:
        wait = max(at_least, backoff_seconds(self._failures, _FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS))
        self._failures += 1
        LOG.warning("watch of %s failed: %s; retrying in %.1f s", self.path, error, wait)
        await asyncio.sleep(wait)
