"""An event loop in a separate thread, for tasks that run while a test waits."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from finetune_operator.clusters.api_server import ApiServer
from simulated_kubelet import SimulatedKubelet

Result = TypeVar("Result")


class LoopThread:
    """A context manager; its tasks are cancelled at exit."""

    def __enter__(self) -> "LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, Result], *, within: float = 60.0) -> Result:
        """Run `work` and return its result or raise its exception."""
        return self.start(work).result(within)

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run `work` concurrently with the test."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def running_kubelet(loop: LoopThread, admin: Path, namespace: str) -> Iterator[SimulatedKubelet]:
    """Run a simulated kubelet for the namespace. If it failed, its exception is raised at the end."""
    server = loop.run(ApiServer.connect(admin))
    kubelet = SimulatedKubelet(server, namespace)
    running = loop.start(kubelet.run())
    try:
        yield kubelet
    finally:
        kubelet.stopping = True
        try:
            running.result(60)
        finally:
            loop.run(server.close())
