"""Makes a server of the test that listens only on loopback, such as the object store, reachable for pods."""

import asyncio
import threading
from types import TracebackType


class Forward:
    """Listens on an address of this machine that pods can reach, and forwards to 127.0.0.1. A context manager."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.target = port
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forward", daemon=True)

    def __enter__(self) -> "Forward":
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._connected, self.address, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def _call(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, there_writer}
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        self._open -= {writer, there_writer}

    async def _close(self) -> None:
        self._server.close()
        # Not cancelled, because asyncio would report each cancellation as an error of a callback.
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side closes; then close the other."""
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other direction ends with it
    finally:
        writer.close()
