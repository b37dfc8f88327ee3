"""`GET /progress` of a pod. What runs in a pod is the user's: it may answer anything, or without end.

No HTTP library is used for the transfer because none of them bounds all that a server can send: header lines, a body
that grows when it is unpacked, redirects to other addresses. Here every byte of an answer counts against one limit.
"""

import asyncio
import http.client
import io
import socket
from typing import cast

from finetune_api.progress import MAX_PROGRESS_BYTES, Progress

_TOTAL_SECONDS = 2.0
"""From the connection to the last byte. A supervisor answers from memory; what takes longer does not answer."""
_MAX_ANSWER_BYTES = MAX_PROGRESS_BYTES + 16 * 1024
"""With the headers."""
_CHUNK_BYTES = 16 * 1024


async def get_progress(host: str, port: int, query: str = "") -> Progress | None:
    """Progress of the pod at an IP address; None where no whole and valid answer comes in time."""
    try:
        async with asyncio.timeout(_TOTAL_SECONDS):
            answer = await _exchange(host, port, f"/progress?{query}")
        return None if answer is None else Progress.decode(_body(answer))
    except (OSError, http.client.HTTPException, ValueError):
        return None  # not up yet, or just gone: the next look will tell


def host_of(address: str) -> str:
    """An address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


async def _exchange(host: str, port: int, path: str) -> bytes | None:
    """All that the server sends; None where that is more than an answer may have."""
    reader, writer = await asyncio.open_connection(host, port, limit=_CHUNK_BYTES)
    try:
        head = (
            f"GET {path} HTTP/1.1",
            f"Host: {host_of(host)}:{port}",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        writer.write("\r\n".join((*head, "", "")).encode())
        answer = bytearray()
        while chunk := await reader.read(_CHUNK_BYTES):
            answer += chunk
            if len(answer) > _MAX_ANSWER_BYTES:
                return None
        return bytes(answer)
    finally:
        writer.transport.abort()


class _Received:
    """What `http.client` needs of a socket, with all bytes there already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, _mode: str) -> io.BytesIO:
        """The bytes as a file."""
        return io.BytesIO(self._content)


def _body(answer: bytes) -> bytes:
    """The body of an answer with status 200; empty for any other status, redirects among them.

    Raises HTTPException or ValueError for what is no answer, or not a whole one.
    """
    response = http.client.HTTPResponse(cast(socket.socket, _Received(answer)))
    response.begin()
    return response.read() if response.status == http.client.OK else b""
