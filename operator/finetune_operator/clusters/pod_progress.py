"""`GET /progress` of a pod. The image of a pod is untrusted: it may send any response, or one without end.

No HTTP library is used for the transfer, because none limits everything that a server can send: header lines, a
compressed body, redirects to other addresses. Here all bytes of a response count against one limit.
"""

import asyncio
import http.client
import io
import socket
from typing import cast

from finetune_api.progress import MAX_PROGRESS_BYTES, Progress

_TOTAL_SECONDS = 2.0
"""Timeout from the connection to the last byte. A supervisor responds from memory."""
_MAX_ANSWER_BYTES = MAX_PROGRESS_BYTES + 16 * 1024
"""Maximum size of a response, including headers."""
_CHUNK_BYTES = 16 * 1024


async def get_progress(host: str, port: int, query: str = "") -> Progress | None:
    """Return the progress of the pod at an IP address; None without a complete and valid response in time."""
    try:
        async with asyncio.timeout(_TOTAL_SECONDS):
            answer = await _exchange(host, port, f"/progress?{query}")
        return None if answer is None else Progress.decode(_body(answer))
    except (OSError, http.client.HTTPException, ValueError):
        return None  # not started yet, or just ended; read again later


def host_of(address: str) -> str:
    """Return an address for a URL, IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


async def _exchange(host: str, port: int, path: str) -> bytes | None:
    """Return the response; None if it exceeds the limit."""
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
    """Socket interface for `http.client` over bytes that were already received."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, _mode: str) -> io.BytesIO:
        """Return the bytes as a file."""
        return io.BytesIO(self._content)


def _body(answer: bytes) -> bytes:
    """Return the body of a response with status 200; empty for other statuses, including redirects.

    Raises HTTPException or ValueError for an invalid or incomplete response.
    """
    response = http.client.HTTPResponse(cast(socket.socket, _Received(answer)))
    response.begin()
    return response.read() if response.status == http.client.OK else b""
