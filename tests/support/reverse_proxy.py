"""A reverse proxy in a separate thread; subclasses define how requests are handled."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from loop_thread import LoopThread
from process_support import free_port


class ReverseProxy(ABC):
    """A context manager; it listens on `port` of 127.0.0.1."""

    def __enter__(self) -> Self:
        self.port = free_port()
        self.loop = LoopThread().__enter__()
        self.loop.run(self.listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.run(self.leave())
        self.loop.__exit__(kind, error, trace)

    @abstractmethod
    def client(self) -> aiohttp.ClientSession:
        """Client for the server; created in the proxy's event loop."""

    @abstractmethod
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Respond to one request."""

    async def listen(self) -> None:
        """Listen, or listen again, on the same port."""
        self.session = self.client()
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def leave(self) -> None:
        """Stop listening and close open connections."""
        await self._runner.cleanup()
        await self.session.close()


def cut(request: web.Request) -> web.Response:
    """Close the connection without a response."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
