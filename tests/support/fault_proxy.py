"""A reverse proxy in front of the real API server that makes requests fail like networks and servers do.

Plain HTTP to the client, TLS to the server. The client's token is forwarded, so its permissions apply.
"""

import base64
import contextlib
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from reconciled_job import MUTATING
from reverse_proxy import ReverseProxy

_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "accept-encoding", "keep-alive"})
"""Hop-by-hop headers; and compression, which would prevent faults from reading the content."""
_PATH = re.compile(
    r"^/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/[^/]+)?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/[a-z]+)?)?$"
)


@dataclass(frozen=True)
class Call:
    """A request as sent by the client."""

    method: str
    path: str
    query: str
    at: float

    @property
    def plural(self) -> str:
        """`jobs`; empty for requests that are not about objects, such as discovery."""
        found = _PATH.match(self.path)
        return found["plural"] if found else ""

    @property
    def kind(self) -> str:
        """`write`, `watch`, `list`, `get`, or `other` for requests that are not about objects."""
        found = _PATH.match(self.path)
        if found is None:
            return "other"
        if self.method in MUTATING:
            return "write"
        if "watch=true" in self.query:
            return "watch"
        return "get" if found["name"] else "list"


class Stream:
    """An open watch."""

    def __init__(self, call: Call, request: web.Request, response: web.StreamResponse) -> None:
        self.call = call
        self._request, self._response = request, response
        self.is_over = False
        self.is_deaf: Callable[[bytes], bool] = lambda _: False
        """Lines that are lost on this connection, for as long as it is open."""

    async def send(self, content: bytes) -> None:
        if not self.is_over:
            await self._response.write(content)

    def cut(self) -> None:
        """Close like a lost connection: without a last chunk."""
        self.is_over = True
        if self._request.transport is not None:
            self._request.transport.abort()

    async def end(self) -> None:
        """Close like a server that completed the response."""
        if not self.is_over:
            self.is_over = True
            await self._response.write_eof()
            self.cut()


class Fault:
    """Changes requests that it applies to. This base class changes nothing; each fault overrides some methods."""

    async def before(self, call: Call) -> web.Response | None:
        """Return a response that replaces the server's."""
        return None

    async def opened(self, stream: Stream) -> None:
        """A watch was opened, or was open when the fault was activated."""

    async def event(self, stream: Stream, line: bytes) -> None:
        """The server sent one line of a watch."""
        await stream.send(line)

    def answered(self, call: Call, content: bytes, headers: dict[str, str]) -> bytes:
        """Return what the client gets instead of the server's response (not for watches). May change `headers`."""
        return content


@dataclass
class _Active:
    kinds: frozenset[str]
    plurals: frozenset[str]
    fault: Fault

    def is_for(self, call: Call) -> bool:
        return call.kind in self.kinds and (not self.plurals or call.plural in self.plurals)


@dataclass
class FaultProxy(ReverseProxy):
    """A context manager between a client and the API server of its kubeconfig; `server` is its address."""

    kubeconfig: Path
    calls: list[Call] = field(default_factory=list)
    """All requests so far, in order."""
    _active: list[_Active] = field(default_factory=list)
    _streams: set[Stream] = field(default_factory=set)

    def __enter__(self) -> Self:
        cluster = json.loads(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        self._upstream: str = cluster["server"]
        data = cluster.get("certificate-authority-data")
        self._trust = ssl.create_default_context(
            cafile=cluster.get("certificate-authority"), cadata=base64.b64decode(data).decode() if data else None
        )
        return super().__enter__()

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def fault(self, fault: Fault, *kinds: str, plurals: tuple[str, ...] = ()) -> Iterator[None]:
        """Activate the fault in the block for requests of these kinds, and plurals if given. The newest fault
        applies."""
        active = _Active(frozenset(kinds), frozenset(plurals), fault)
        self.loop.run(self._begin(active))
        try:
            yield
        finally:
            self._active.remove(active)

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        """In the block, nothing is listening and open connections are closed."""
        self.loop.run(self.leave())
        try:
            yield
        finally:
            self.loop.run(self.listen())

    def cut_watches(self) -> None:
        """Close all watches that are open now."""

        async def cut() -> None:
            for stream in list(self._streams):
                stream.cut()

        self.loop.run(cut())

    def count(self, kind: str, plural: str = "", *, since: float = 0.0) -> int:
        """Number of requests of a kind; `since` is a time of `time.monotonic`."""
        return sum(call.kind == kind and plural in ("", call.plural) for call in list(self.calls) if call.at >= since)

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trust, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def leave(self) -> None:
        for stream in list(self._streams):
            stream.cut()
        await super().leave()

    async def _begin(self, active: _Active) -> None:
        self._active.insert(0, active)
        for stream in list(self._streams):
            if active.is_for(stream.call):
                await active.fault.opened(stream)

    def _fault_for(self, call: Call) -> Fault:
        return next((active.fault for active in self._active if active.is_for(call)), Fault())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = Call(request.method, request.path, request.query_string, time.monotonic())
        self.calls.append(call)
        body = await request.read()
        if (answer := await self._fault_for(call).before(call)) is not None:
            return answer
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self.session.request(
            request.method, f"{self._upstream}{request.rel_url}", headers=headers, data=body or None
        ) as answer:
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if call.kind == "watch" and answer.status == 200:
                return await self._stream(call, request, answer, passed)
            content = self._fault_for(call).answered(call, await answer.read(), passed)
            return web.Response(status=answer.status, body=content, headers=passed)

    async def _stream(
        self, call: Call, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        stream = Stream(call, request, response)
        self._streams.add(stream)
        try:
            await self._fault_for(call).opened(stream)
            await self._pass_on(stream, answer)
        except (ConnectionError, aiohttp.ClientError):
            stream.cut()  # one side closed the connection, so close the other
        finally:
            self._streams.discard(stream)
            if answer.connection is not None and answer.connection.transport is not None:
                answer.connection.transport.abort()  # a TLS shutdown would outlive the loop
        return response

    async def _pass_on(self, stream: Stream, answer: aiohttp.ClientResponse) -> None:
        rest = b""
        async for chunk in answer.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(lambda line: not stream.is_deaf(line), lines):
                await self._fault_for(stream.call).event(stream, line + b"\n")
            if stream.is_over:
                return


def status_of(code: int, reason: str, message: str) -> dict[str, Any]:
    """The Status object that an API server sends with an error."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
