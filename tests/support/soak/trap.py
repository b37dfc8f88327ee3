"""A proxy for storage that kills a process at one kind of request, and speeds up storage's clock."""

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
"""Factor of storage's clock: the hour for which unneeded blobs are kept takes two seconds."""

_MODIFIED = re.compile(rb"<LastModified>([^<]+)</LastModified>")


@dataclass
class Trap:
    """Kills once, at the event's request."""

    event: Event
    kill: Callable[[], bool]
    """Whether there was a process to kill."""
    seen: int = 0
    is_busy: bool = False
    """Prevents two concurrent requests from both triggering it."""
    fired: threading.Event = field(default_factory=threading.Event)

    def has_fired(self) -> bool:
        """Waits for a kill in progress: the process can be seen dead before `hit` is set."""
        while self.is_busy and not self.fired.wait(0.01):
            pass
        return self.fired.is_set()

    def catches(self, point: Point | None) -> bool:
        """Whether this request triggers the kill."""
        if point is not self.event.point or self.is_busy or self.fired.is_set():
            return False
        self.seen += 1
        self.is_busy = self.seen >= self.event.number
        return self.is_busy


@dataclass
class TrapProxy(StoreProxy):
    """A StoreProxy that kills a process when a trap triggers."""

    trap: Trap | None = None
    _epoch: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except ConnectionError:
            return cut(request)  # its sender has been killed
        trap = self.trap
        try:
            if trap is None or not trap.catches(point_of(request.method, request.path_qs, body)):
                return await self._passed_on(request, body)
            await self._fire(trap, request, body)
        except aiohttp.ClientError:
            pass  # the server is down
        return cut(request)

    async def _fire(self, trap: Trap, request: web.Request, body: bytes) -> None:
        try:
            if trap.event.is_after:
                await self._passed_on(request, body)
            if await asyncio.to_thread(trap.kill):
                trap.fired.set()
        finally:
            trap.is_busy = False

    async def _passed_on(self, request: web.Request, body: bytes) -> web.Response:
        response = await super()._passed_on(request, body)
        if request.method == "GET" and "list-type=2" in request.query_string:
            assert isinstance(response.body, bytes)
            response.body = _MODIFIED.sub(self._with_fast_clock, response.body)
        return response

    def _with_fast_clock(self, found: "re.Match[bytes]") -> bytes:
        time = datetime.fromisoformat(found[1].decode())
        shifted = self._epoch + (time - self._epoch) * CLOCK_FACTOR
        return b"<LastModified>" + shifted.strftime("%Y-%m-%dT%H:%M:%SZ").encode() + b"</LastModified>"


def point_of(method: str, path: str, body: bytes) -> Point | None:
    """The role of a storage request for a checkpoint; None: not relevant."""
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
