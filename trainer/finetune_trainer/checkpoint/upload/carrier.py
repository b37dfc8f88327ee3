"""A rank's side of its uploader: hands it orders, hears of them, and starts another one when it has died."""

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import time
from typing import Protocol

from ...errors import TrainerError
from ..format.failures import Failure
from ..format.orders import Answer, Order, Setup
from .shared_memory import SharedMemory
from .uploader import HURRY, LONGEST_MESSAGE

log = logging.getLogger(__name__)

_NICENESS = 19
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
        self._hand_over()

    def receive(self, timeout: float) -> Answer | None:
        """See Carrier."""
        if not self._order_bytes:
            return None
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
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.wait()
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
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        self._pass_on(self._setup.model_dump_json().encode())

    def _pass_on(self, message: bytes) -> None:
        if self._channel is not None:  # else the next one will hear it
            with contextlib.suppress(ConnectionError):  # it has just died, which `receive` notices
                self._channel.send(message)

    def _mourn(self) -> Answer:
        assert self._channel is not None
        assert self._process is not None
        self._channel.close()
        self._channel, code = None, self._process.wait()
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        text = f"the uploader has ended with {code}; another one takes its order"
        log.warning(text)
        return Answer(failure=Failure.of(TrainerError(text)))

    def _replace(self, timeout: float) -> None:
        """A new process with the same order, once the pause is over."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
        if time.monotonic() < self._not_before:
            return
        self._hand_over()
