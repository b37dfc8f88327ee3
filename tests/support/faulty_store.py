"""A real S3 server behind a proxy that disturbs requests like bad networks and servers do, differently for each run.

The last part of the folder in a request selects the disturbance: `bucket/late/...` or `?prefix=late/...`.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

from reverse_proxy import cut
from store_proxy import StoreProxy

PassOn = Callable[[web.Request, bytes], Awaitable[web.Response]]
Disturbance = Callable[[web.Request, bytes, PassOn], Awaitable[web.StreamResponse]]


async def late(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    await asyncio.sleep(0.2)
    return await pass_on(request, body)


async def reset(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """Close the connection before the server gets the request."""
    return cut(request)


async def unanswered(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """The server executes the request, but the client gets no response."""
    await pass_on(request, body)
    return cut(request)


def refused(status: int, code: str) -> Disturbance:
    async def refuse(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        return web.Response(status=status, text=text, content_type="application/xml")

    return refuse


async def broken_off(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """Send half of a response, then close the connection."""
    answer = await pass_on(request, body)
    response = web.StreamResponse(
        status=answer.status, headers={**answer.headers, "Content-Length": str(_size(answer))}
    )
    await response.prepare(request)
    await response.write(_content(answer)[: _size(answer) // 2])
    return cut(request)


async def short(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """Send a shortened response that looks complete."""
    answer = await pass_on(request, body)
    return _with(answer, _content(answer)[: _size(answer) // 2])


async def changed(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """Flip one bit of a response."""
    answer = await pass_on(request, body)
    return _with(answer, _flipped(_content(answer)))


async def stored_changed(request: web.Request, body: bytes, pass_on: PassOn) -> web.StreamResponse:
    """Flip one bit of the stored content."""
    return await pass_on(request, _flipped(body))


ANY, BLOB = re.compile(""), re.compile("PUT .*/checkpoints/blobs/")
READ, LIST_OR_READ = re.compile("GET [^?]*/checkpoints/"), re.compile("GET .*/checkpoints/")
DISTURBANCES: dict[str, tuple[Disturbance, re.Pattern[str]]] = {
    "late": (late, ANY),
    "reset": (reset, ANY),
    "unanswered": (unanswered, ANY),
    "internal-error": (refused(500, "InternalError"), ANY),
    "unavailable": (refused(503, "ServiceUnavailable"), ANY),
    "slow-down": (refused(503, "SlowDown"), ANY),
    "broken-off": (broken_off, LIST_OR_READ),
    "short": (short, LIST_OR_READ),
    "changed": (changed, READ),
    "stored-changed": (stored_changed, BLOB),
}
OLD_LISTS = "old-lists"
"""Every list gets the response of the first one."""


@dataclass
class FaultyStoreProxy(StoreProxy):
    """Disturbs the first request of each kind; retries succeed."""

    struck: Counter[str] = field(default_factory=Counter)
    """Number of disturbances, by name."""
    _seen: set[str] = field(default_factory=set)
    _lists: dict[str, bytes] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        kind = _folder(request)
        if kind == OLD_LISTS and "list-type=2" in request.query_string:
            return await self._old_list(request)
        disturbance, concerned = DISTURBANCES.get(kind, (None, ANY))
        line = f"{request.method} {unquote(request.path_qs)}"
        if disturbance is None or line in self._seen or not concerned.match(line):
            return await self._passed_on(request, body)
        self._seen.add(line)
        self.struck[kind] += 1
        return await disturbance(request, body, self._passed_on)

    async def _old_list(self, request: web.Request) -> web.Response:
        answer = await self._passed_on(request, b"")
        first = self._lists.setdefault(request.path_qs, _content(answer))
        self.struck[OLD_LISTS] += first != _content(answer)
        return _with(answer, first)


def _folder(request: web.Request) -> str:
    """`late` of `/bucket/late/runs/...` and of `/bucket?prefix=late/runs/...`."""
    key = request.query.get("prefix") or request.path.removeprefix("/").partition("/")[2]
    return unquote(key).partition("/")[0]


def _content(answer: web.Response) -> bytes:
    assert isinstance(answer.body, bytes)
    return answer.body


def _size(answer: web.Response) -> int:
    return len(_content(answer))


def _with(answer: web.Response, content: bytes) -> web.Response:
    headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
    return web.Response(status=answer.status, body=content, headers=headers)


def _flipped(content: bytes) -> bytes:
    """Flip a bit; errors and empty responses are unchanged."""
    changed = bytearray(content)
    if changed:
        changed[len(changed) // 2] ^= 1
    return bytes(changed)
