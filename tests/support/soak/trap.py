"""The way to storage, with a trap at one kind of request, and with a clock that runs faster."""

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from reverse_proxy import cut
from soak.events import Event, Point
from store_proxy import StoreProxy

CLOCK_FACTOR = 1800
"""Storage's clock runs so many times as fast: the hour for which unneeded blobs are left alone takes two seconds."""

_MODIFIED = re.compile(rb"<LastModified>([^<]+)</LastModified>")


@dataclass
class Trap:
    """Springs at the event's request, once."""

    event: Event
    kill: Callable[[], bool]
    """Whether there was anything to kill."""
    seen: int = 0
    is_busy: bool = False
    """Two requests at once must not both spring it."""
    sprung: threading.Event = field(default_factory=threading.Event)

    def has_sprung(self) -> bool:
        """Once it is not about to: whom it kills may be seen dead before it has told."""
        while self.is_busy and not self.sprung.wait(0.01):
            pass
        return self.sprung.is_set()

    def catches(self, point: Point | None) -> bool:
        """Whether this request is the one."""
        if point is not self.event.point or self.is_busy or self.sprung.is_set():
            return False
        self.seen += 1
        self.is_busy = self.seen >= self.event.number
        return self.is_busy


@dataclass
class TrapProxy(StoreProxy):
    """A StoreProxy that somebody dies at."""

    trap: Trap | None = None
    _epoch: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except ConnectionError:
            return cut(request)  # whoever sends it has been killed
        trap = self.trap
        try:
            if trap is None or not trap.catches(point_of(request.method, request.path_qs, body)):
                return await self._passed_on(request, body)
            await self._spring(trap, request, body)
        except aiohttp.ClientError:
            pass  # the server is away
        return cut(request)

    async def _spring(self, trap: Trap, request: web.Request, body: bytes) -> None:
        try:
            if trap.event.is_after:
                await self._passed_on(request, body)
            if await asyncio.to_thread(trap.kill):
                trap.sprung.set()
        finally:
            trap.is_busy = False

    async def _passed_on(self, request: web.Request, body: bytes) -> web.Response:
        response = await super()._passed_on(request, body)
        if request.method == "GET" and "list-type=2" in request.query_string:
            assert isinstance(response.body, bytes)
            response.body = _MODIFIED.sub(self._hastened, response.body)
        return response

    def _hastened(self, found: "re.Match[bytes]") -> bytes:
        time = datetime.fromisoformat(found[1].decode())
        hastened = self._epoch + (time - self._epoch) * CLOCK_FACTOR
        return b"<LastModified>" + hastened.strftime("%Y-%m-%dT%H:%M:%SZ").encode() + b"</LastModified>"


def point_of(method: str, path: str, body: bytes) -> Point | None:
    """What a request to storage is in the life of a checkpoint; None: nothing that matters here."""
    if method == "PUT" and re.search(r"/attempts/\d+\.json$", path):
        return Point.CLAIM
    if method == "PUT" and "/checkpoints/manifests/" in path:
        return Point.MANIFEST
    if method == "PUT" and "/checkpoints/blobs/" in path:
        if not body.startswith(b"{"):
            return Point.BLOB
        return Point.PART if b'"layout":"' in body else None
    if method == "GET" and "/checkpoints/blobs/" in path:
        return Point.RESTORE
    if method == "POST" and "delete" in path.partition("?")[2]:
        if b"/checkpoints/manifests/" in body:
            return Point.PRUNED_MANIFESTS
        return Point.PRUNED_BLOBS if b"/checkpoints/blobs/" in body else None
    return None
