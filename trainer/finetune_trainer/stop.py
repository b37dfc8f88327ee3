"""SIGTERM means: stop at a step that all ranks agree on, with the state saved."""

import signal
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """Set once; the training loop reads it between two steps and agrees with the other ranks."""

    requested: bool = False


def install_stop_flag() -> StopFlag:
    """A flag that SIGTERM sets and nothing else does. Main thread only.

    The fork server starts ranks with SIGTERM blocked, so that one sent before this handler exists waits for it.
    """
    flag = StopFlag()

    def on_term(_signum: int, _frame: FrameType | None) -> None:
        flag.requested = True

    signal.signal(signal.SIGTERM, on_term)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return flag
