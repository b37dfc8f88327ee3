"""The faults of a FaultProxy: what an API server, a network or a middlebox does to requests and watches."""

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

from fault_proxy import Call, Fault, Stream, status_of


@dataclass
class ErrorResponse(Fault):
    """Responds with an error, `times` times."""

    status: int
    reason: str = "InternalError"
    retry_after: int | None = None
    times: float = float("inf")

    async def before(self, call: Call) -> web.Response | None:
        if self.times <= 0:
            return None
        self.times -= 1
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        content = status_of(self.status, self.reason, f"{self.status}, as requested by the test")
        return web.json_response(content, status=self.status, headers=headers)

    async def opened(self, stream: Stream) -> None:
        stream.cut()  # so that the client reconnects and gets the error


@dataclass
class SlowResponse(Fault):
    """Responds after `seconds` seconds."""

    seconds: float

    async def before(self, call: Call) -> web.Response | None:
        await asyncio.sleep(self.seconds)
        return None

    async def event(self, stream: Stream, line: bytes) -> None:
        await asyncio.sleep(self.seconds)
        await stream.send(line)


class TruncatedEvent(Fault):
    """Closes the connection in the middle of an event."""

    async def event(self, stream: Stream, line: bytes) -> None:
        await stream.send(line[: len(line) // 2])
        stream.cut()


@dataclass
class SilentConnection(Fault):
    """Connections stay open but carry no more data, like after a middlebox dropped their state."""

    bookmarks: bool = False
    """True: bookmarks are still sent, like by a server whose watch cache is stuck."""

    async def opened(self, stream: Stream) -> None:
        stream.is_deaf = _is_event if self.bookmarks else lambda _: True


def _is_event(line: bytes) -> bool:
    return bool(json.loads(line)["type"] != "BOOKMARK")


@dataclass
class ExpiredVersion(Fault):
    """Sends an ERROR event that the version is too old, before any other event, once for each kind of object."""

    code: int = 410
    reported: set[str] = field(default_factory=set)
    """Kinds that already got it."""

    async def opened(self, stream: Stream) -> None:
        if stream.call.plural in self.reported:
            return
        self.reported.add(stream.call.plural)
        gone = {"type": "ERROR", "object": status_of(self.code, "Expired", "too old resource version")}
        await stream.send(json.dumps(gone).encode() + b"\n")
        await stream.end()


@dataclass
class StaleList(Fault):
    """Responds to lists with their first response, like a server that lags behind."""

    _first: dict[tuple[str, str], bytes] = field(default_factory=dict)
    is_replaying: bool = False

    def answered(self, call: Call, content: bytes, headers: dict[str, str]) -> bytes:
        key = (call.path, call.query)
        if self.is_replaying:
            return self._first.get(key, content)
        self._first[key] = content
        return content


@dataclass
class ClockSkew(Fault):
    """The server's clock, as its responses show it, is ahead of the client's by `ahead`."""

    ahead: timedelta

    def answered(self, call: Call, content: bytes, headers: dict[str, str]) -> bytes:
        headers["Date"] = format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)
        return content


class InvalidResponse(Fault):
    """A response that no API server sends, such as the login page of a proxy."""

    def answered(self, call: Call, content: bytes, headers: dict[str, str]) -> bytes:
        headers["Content-Type"] = "text/html"
        return b"<html>Please log in</html>"


class DuplicatedEvents(Fault):
    """Sends every event twice."""

    async def event(self, stream: Stream, line: bytes) -> None:
        await stream.send(line)
        await stream.send(line)


@dataclass
class ReorderedEvents(Fault):
    """Swaps two consecutive events; a single event is delayed."""

    _held: dict[Stream, bytes] = field(default_factory=dict)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def event(self, stream: Stream, line: bytes) -> None:
        earlier = self._held.pop(stream, None)
        if earlier is None:
            self._held[stream] = line
            task = asyncio.create_task(self._release(stream, line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        await stream.send(line)
        await stream.send(earlier)

    async def _release(self, stream: Stream, line: bytes) -> None:
        await asyncio.sleep(1.0)
        if self._held.get(stream) is line:
            del self._held[stream]
            await stream.send(line)
