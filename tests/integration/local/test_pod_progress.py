"""Responses of a pod to `GET /progress`: the container is under the user's control, and may be hostile."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import repeat

import pytest

from finetune_api.progress import MAX_PROGRESS_BYTES, Progress
from finetune_operator.clusters.pod_progress import get_progress

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"stage":"train","step":7}'
MIB = 2**20

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Port of a server that closes all of its connections at exit."""
    serving: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the sockets in its next iteration


async def answered(chunks: Iterable[bytes], host: str = "127.0.0.1") -> Progress | None:
    """The progress that is read from a response in these chunks."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    async with listening(serve, host) as port:
        return await get_progress(host, port)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        OK + b"Content-Length: 26\r\n\r\n" + BODY,
        OK + b"Transfer-Encoding: chunked\r\n\r\n1a\r\n" + BODY + b"\r\n0\r\n\r\n",
    ],
    ids=["until close", "content length", "chunked"],
)
def test_progress_is_read_with_any_framing(answer: bytes) -> None:
    found = asyncio.run(answered([answer[:20], answer[20:]]))
    assert found == Progress(stage="train", step=7)


def test_a_pod_may_have_an_ipv6_address() -> None:
    assert asyncio.run(answered([OK + b"\r\n" + BODY], host="::1")) == Progress(stage="train", step=7)


@pytest.mark.parametrize(
    "chunks",
    [
        [OK + b"\r\n" + BODY[:-1] + b" " * MAX_PROGRESS_BYTES + b"}"],
        [OK + b"Content-Length: 900\r\n\r\n{"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + BODY],
        [b"HTTP/1.1 500 No\r\n\r\n" + BODY],
        [b"not HTTP"],
        [],
    ],
    ids=["too long", "truncated", "a chunk without an end", "an error", "another protocol", "nothing"],
)
def test_an_incomplete_or_invalid_response_is_not_progress(chunks: list[bytes]) -> None:
    assert asyncio.run(answered(chunks)) is None


@pytest.mark.parametrize(
    "head",
    [OK + b"\r\n", OK + b"X-Flood: ", OK + b"Content-Encoding: gzip\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 9],
    ids=["body", "header", "packed body", "interim answers"],
)
def test_an_endless_response_uses_bounded_memory_and_time(head: bytes) -> None:
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert asyncio.run(answered([head, *repeat(b"a" * MIB, 256)])) is None
    assert time.monotonic() - begun < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_response_that_never_ends_is_abandoned() -> None:
    async def scenario() -> Progress | None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OK + b"\r\n")
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)

        async with listening(serve) as port:
            return await get_progress("127.0.0.1", port)

    begun = time.monotonic()
    assert asyncio.run(scenario()) is None
    assert time.monotonic() - begun < 4


def test_a_redirect_is_not_followed() -> None:
    async def scenario() -> tuple[Progress | None, list[bytes]]:
        asked: list[bytes] = []

        async def inner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n"))
            writer.write(OK + b"\r\n" + BODY)

        async with listening(inner) as port:
            place = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/admin\r\n\r\n".encode()
            return await answered([place]), asked

    assert asyncio.run(scenario()) == (None, [])
