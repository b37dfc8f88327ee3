"""asyncio's loop in a terminal, where Ctrl-C may come at any moment."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, but an interrupt waits until the loop is made: half of one complains as it is removed."""
    with asyncio.Runner() as runner:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            runner.get_loop()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return runner.run(work)
