"""A watch that takes no list before it, and stays open whatever happens: what it may have missed, others look for."""

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
"""After which the server is asked to end the watch, so that it is opened on another one from time to time."""
_FIRST_WAIT_SECONDS = 0.5
_MAX_WAIT_SECONDS = 30.0


@dataclass
class Watch:
    """Objects of one kind, from now on."""

    server: ApiServer
    path: str
    """The collection's."""
    selectors: Mapping[str, str]
    """Of what is shown: `labelSelector`, `fieldSelector`."""
    silence_seconds: float
    """After which a connection that brings nothing, no bookmark either, is taken for dead."""
    shown: Callable[[str, Manifest], None]
    """Is told each event, by its type, and its object."""
    began: Callable[[], None] = lambda: None
    """Is told when the watch begins at a new place: what was before, it does not show."""
    _version: str = ""
    """Up to which everything has been shown; empty: not known."""
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
                    self._version = ""  # too old, or of a server that knows another history
                await self._wait(error, error.retry_after or 0.0)
            except ApiUnreachableError as error:
                await self._wait(error, 0.0)

    async def _begin(self) -> None:
        """Of a list only its version counts."""
        newest = await self.server.request("GET", self.path, accept=METADATA_OF_ALL, limit=1)
        self._version = newest["metadata"]["resourceVersion"]
        self.began()

    async def _follow(self) -> None:
        """One connection, until the server ends it."""
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
        """No single object may end the watch, and the operator with it."""
        try:
            self.shown(event, found)
        except Exception:
            LOG.exception("the watch of %s: an object that cannot be understood is passed over", self.path)

    async def _wait(self, error: Exception, at_least: float) -> None:
        wait = max(at_least, backoff_seconds(self._failures, _FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS))
        self._failures += 1
        LOG.warning("the watch of %s: %s; again in %.1f s", self.path, error, wait)
        await asyncio.sleep(wait)
