"""Run a coroutine so that Ctrl-C can be pressed at any time."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Like `asyncio.run`, but SIGINT is blocked while the event loop is created.

    An interrupt during the creation would leave an incomplete loop, whose finalizer prints an error.
    """
    with asyncio.Runner() as runner:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            runner.get_loop()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return runner.run(work)
