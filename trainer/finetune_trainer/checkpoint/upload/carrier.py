"""A rank's side of its uploader: hands it orders, hears of them, and starts another one when it has died."""

import contextlib
import logging
import math
import os
import select
import socket
import subprocess
import sys
import time
from typing import Protocol

from ...errors import TrainerError
from ..format.failures import Failure
from ..format.orders import Answer, Order, PartOrder, Setup
from .shared_memory import SharedMemory
from .uploader import HURRY, LONGEST_MESSAGE

log = logging.getLogger(__name__)

_NICENESS = 19
_LATE_FACTOR, LATE_LEAST_SECONDS = 3.0, 60.0
"""Times what an upload is spread over, which is a third of an interval: then the next one is due."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Before an uploader that has died is replaced."""


class Carrier(Protocol):
    """Who carries out orders, one at a time. `snapshot` is where it looks for what a PartOrder means."""

    snapshot: SharedMemory

    def prepare(self) -> None:
        """Orders will come: whoever carries them out may get ready."""

    def send(self, order: Order) -> None:
        """Give the order; the answers come by `receive`."""

    def receive(self, timeout: float) -> Answer | None:
        """The next answer; None if there is none within the time, in seconds."""

    def hurry(self) -> None:
        """Somebody waits: the open order is no longer spread over time."""

    def close(self) -> None:
        """Nothing is sent any more; an open order is dropped."""


class UploaderProcess:
    """A Carrier: `python -m finetune_trainer.checkpoint.upload.uploader`, started by `prepare` or the first order."""

    def __init__(self, setup: Setup) -> None:
        self.snapshot, self._orders = SharedMemory(name="snapshot"), SharedMemory(name="orders")
        self._setup = setup
        self._order_bytes = 0
        self._hurried = False
        self._yields = True
        """Whether an uploader gets the processor only when nobody else wants it."""
        self._late_at = math.inf
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._channel: socket.socket | None = None
        """To a process that was alive when it was last heard of."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, which may have died; None: there was none yet."""
        return None if self._process is None else self._process.pid

    def prepare(self) -> None:
        """See Carrier."""
        if self._process is None:
            self._start()

    def send(self, order: Order) -> None:
        """See Carrier."""
        assert not self._order_bytes, "one order at a time"
        content = order.model_dump_json().encode()
        self._orders.array(len(content)).data[:] = content
        self._order_bytes, self._hurried = len(content), False
        self._late_at = time.monotonic() + _late_seconds(order)
        self._hand_over()

    def receive(self, timeout: float) -> Answer | None:
        """See Carrier."""
        if not self._order_bytes:
            return None
        if self._yields and time.monotonic() > self._late_at:
            self._stop_yielding()
        if self._channel is None:
            self._replace(timeout)
            return None
        if not select.select([self._channel], [], [], timeout)[0]:
            return None
        try:
            content = self._channel.recv(LONGEST_MESSAGE)
        except ConnectionError:
            content = b""
        if not content:
            return self._mourn()
        answer = Answer.model_validate_json(content)
        if answer.done or answer.is_final:
            self._order_bytes, self._pause = 0, _FIRST_PAUSE
        return answer

    def hurry(self) -> None:
        """See Carrier."""
        if self._order_bytes and not self._hurried:
            self._hurried = True
            self._pass_on(HURRY)

    def close(self) -> None:
        """See Carrier."""
        self._let_go()
        self.snapshot.close()
        self._orders.close()

    def _hand_over(self) -> None:
        """The open order, to the process that is there or to a new one."""
        if self._channel is None:
            self._start()
        self._pass_on(b"%d" % self._order_bytes)
        if self._hurried:
            self._pass_on(HURRY)

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = {
            "channel": theirs.fileno(),
            "orders": self._orders.descriptor,
            "snapshot": self.snapshot.descriptor,
        }
        options = [f"--{name}={descriptor}" for name, descriptor in descriptors.items()]
        command = [sys.executable, "-m", f"{__package__}.uploader", *options]
        with theirs:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=tuple(descriptors.values()))
        # From here, not by itself once it has come so far: its imports are not to be felt either.
        _hold_back(self._process.pid, yields=self._yields)
        self._pass_on(self._setup.model_dump_json().encode())

    def _pass_on(self, message: bytes) -> None:
        if self._channel is not None:  # else the next one will hear it
            with contextlib.suppress(ConnectionError):  # it has just died, which `receive` notices
                self._channel.send(message)

    def _mourn(self) -> Answer:
        code = self._let_go()
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        text = f"the uploader has ended with {code}; another one takes its order"
        log.warning(text)
        return Answer(failure=Failure.of(TrainerError(text)))

    def _stop_yielding(self) -> None:
        """Others may leave nothing at all for as long as they run. Who has no rights cannot leave SCHED_IDLE, so
        another process takes the order; what this one has stored is not stored again."""
        assert self._process is not None
        log.warning("an upload is late: from now on uploads get a little even where the processors are never idle")
        self._yields = False
        self._process.kill()
        self._let_go()

    def _let_go(self) -> int | None:
        """End the channel, with which an uploader ends, too; its exit status, or None where there was none."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        return None if self._process is None else self._process.wait()

    def _replace(self, timeout: float) -> None:
        """A new process with the same order, once the pause is over."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
        if time.monotonic() < self._not_before:
            return
        self._hand_over()


def _late_seconds(order: Order) -> float:
    """After which an order is late. Only a part has much to do, and none of a removal is urgent."""
    if not isinstance(order, PartOrder):
        return math.inf
    return max(_LATE_FACTOR * order.spread_seconds, LATE_LEAST_SECONDS)


def _hold_back(pid: int, *, yields: bool) -> None:
    """Give a process that has one thread so far the lowest priority, and with `yields` only what nobody else wants.

    A nice thread keeps its processor until its slice ends, though a rank has woken; one of SCHED_IDLE loses it at once
    (sched(7)). Where the system has no such policy, the lowest priority it is.
    """
    os.setpriority(os.PRIO_PROCESS, pid, _NICENESS)
    if yields and sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
