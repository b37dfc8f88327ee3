"""No single object can end a watch."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from finetune_operator.clusters.api_server import ApiServer, lines_of
from finetune_operator.controller.watch import Watch

MIB = 2**20


def event(name: str, **fields: Any) -> bytes:
    metadata = {"name": name, "resourceVersion": "1", "annotations": fields}
    return json.dumps({"type": "MODIFIED", "object": {"metadata": metadata}}).encode() + b"\n"


DEEP = b'{"type":"MODIFIED","object":' + b"[" * 50_000 + b"]" * 50_000 + b"}\n"


async def shown(lines: list[bytes], refused: str = "") -> list[str]:
    """Names of the objects that a watch yields from these lines, up to `last`."""
    seen: list[str] = []
    is_over = asyncio.Event()

    def show(_event: str, found: dict[str, Any]) -> None:
        seen.append(found["metadata"]["name"])
        if seen[-1] == "last":
            is_over.set()
        if seen[-1] == refused:
            raise KeyError(refused)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}})
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        await asyncio.sleep(30)
        return response

    application = web.Application()
    application.add_routes([web.get("/jobs", answer)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    server = ApiServer(ApiClient(configuration))
    watching = asyncio.create_task(Watch(server, "/jobs", {}, 30.0, show).run())
    try:
        over = asyncio.create_task(is_over.wait())
        done, _ = await asyncio.wait({watching, over}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert watching not in done, watching.exception()
    finally:
        watching.cancel()
        await server.close()
        await runner.cleanup()
    return seen


@pytest.mark.parametrize("odd", [event("large", text="a" * 9 * MIB), DEEP], ids=["too large", "nested too deeply"])
def test_an_unreadable_event_is_skipped_and_the_watch_continues(odd: bytes) -> None:
    large_enough = event("large", text="a" * 5 * MIB)
    assert asyncio.run(shown([event("first"), odd, large_enough, event("last")])) == ["first", "large", "last"]


def test_an_invalid_object_does_not_end_the_watch() -> None:
    assert asyncio.run(shown([event("odd"), event("last")], refused="odd")) == ["odd", "last"]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"ab\ncd\n"], [b"ab", b"cd"]),
        ([b"a", b"b\nc", b"d\n"], [b"ab", b"cd"]),
        ([b"ab\n\ncd"], [b"ab", b"cd"]),
        ([b"12345", b"67\nab\n"], [b"ab"]),
        ([b"123456\nab\n"], [b"ab"]),
        ([b"12345678", b"12345678", b"9\nab\n"], [b"ab"]),
        ([b"12345\n"], [b"12345"]),
    ],
)
def test_lines_are_split_and_long_ones_skipped(chunks: list[bytes], lines: list[bytes]) -> None:
    async def split() -> list[bytes]:
        async def stream() -> Any:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines_of(stream(), "/x", limit=5)]

    assert asyncio.run(split()) == lines
