"""Handling of SIGTERM: all ranks stop after the same step and save the state."""

import signal
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """Set by SIGTERM. The training loop reads it between two steps and agrees with the other ranks on the step."""

    requested: bool = False


def install_stop_flag() -> StopFlag:
    """Return a flag that SIGTERM sets. Call it in the main thread.

    The fork server starts ranks with SIGTERM blocked, so that a signal that is sent before the handler is installed is
    delivered afterwards.
    """
    flag = StopFlag()

    def on_term(_signum: int, _frame: FrameType | None) -> None:
        flag.requested = True

    signal.signal(signal.SIGTERM, on_term)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return flag
