"""A rank's side of its uploader: hands it orders, hears of them, and starts another one when it has died."""

import contextlib
import enum
import logging
import math
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from ...errors import TrainerError
from ..format.failures import Failure
from ..format.orders import Answer, CommitOrder, Order, PartOrder, PruneOrder, Setup
from .shared_memory import SharedMemory
from .uploader import HURRY, LONGEST_MESSAGE

log = logging.getLogger(__name__)

_LATE_FACTOR, LATE_LEAST_SECONDS = 3.0, 60.0
"""Times what an upload is spread over, which is a third of an interval: then the next one is due."""
AWAITED_SECONDS = 5.0
"""An order that somebody waits for is late after that."""
_STARVED_SHARE = 0.5
"""Of the time that a late order has taken: an uploader that waited longer for a processor is replaced."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Before an uploader that has died is replaced."""


class Priority(enum.IntEnum):
    """Of an uploader's process."""

    IDLE = 0
    """The processors that nobody else wants (SCHED_IDLE): a rank that wakes has its own back at once, while a thread of
    low priority keeps it until its slice ends (sched(7))."""
    LOW = 1
    """Niceness 19: a little, even where no processor is ever idle."""
    ORDINARY = 2
    """That of its rank, while the rank does nothing but wait for it."""


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
        """Somebody waits for the open order: it is no longer spread over time, and gets the priority of its rank."""

    def favour(self) -> None:
        """Somebody waits for the open order, but it keeps its pace."""

    def relax(self) -> None:
        """Nobody waits any more, though the order is still open."""

    def close(self) -> None:
        """Nothing is sent any more; an open order is dropped."""


class UploaderProcess:
    """A Carrier: `python -m finetune_trainer.checkpoint.upload.uploader`, started by `prepare` or the first order."""

    def __init__(self, setup: Setup) -> None:
        self.snapshot, self._orders = SharedMemory(name="snapshot"), SharedMemory(name="orders")
        self._setup = setup
        self._order_bytes = 0
        self._hurried = self._awaited = False
        self._usual = Priority.IDLE
        """What an uploader has while nobody waits for it."""
        self._priority = Priority.IDLE
        """What the process has."""
        self._patience = math.inf
        """Seconds after which the open order is late while nobody waits."""
        self._looked_at, self._look_at = 0.0, math.inf
        """When the process was last looked at, and when that is due again, on the clock of time.monotonic()."""
        self._run_delay = 0.0
        """What it had waited for a processor then, in seconds."""
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
        self._order_bytes, self._hurried, self._awaited = len(content), False, False
        self._patience = _late_seconds(order)
        if not isinstance(order, CommitOrder):  # a small one: whoever waited for the parts waits for it, too
            self._set_priority(self._usual)
        self._hand_over()

    def receive(self, timeout: float) -> Answer | None:
        """See Carrier."""
        if not self._order_bytes:
            return None
        if time.monotonic() > self._look_at:
            self._look()
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
        self.favour()

    def favour(self) -> None:
        """See Carrier."""
        if self._order_bytes and not self._awaited:
            self._awaited = True
            self._set_priority(Priority.ORDINARY)
            self._watch()

    def relax(self) -> None:
        """See Carrier."""
        if self._awaited:
            self._awaited = False
            self._set_priority(self._usual)
            self._watch()

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
        self._watch()

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
        self._priority = Priority.ORDINARY
        if not self._awaited:
            self._set_priority(self._usual)
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

    def _set_priority(self, priority: Priority) -> None:
        """Without the right to raise it (CAP_SYS_NICE) a priority stays as low as it is."""
        if self._channel is None or self._process is None or priority is self._priority:
            return
        with contextlib.suppress(OSError):
            _apply_priority(self._process.pid, priority)
            self._priority = priority

    def _watch(self) -> None:
        """From now on, until the order is late."""
        late_seconds = self._patience
        if self._awaited and not math.isinf(late_seconds):
            late_seconds = AWAITED_SECONDS
        self._looked_at = time.monotonic()
        self._look_at = self._looked_at + late_seconds
        self._run_delay = 0.0 if self._process is None else _run_delay(self._process.pid)

    def _look(self) -> None:
        """The order is late. If that is for want of a processor, another process takes it: others may leave this one
        nothing for as long as they run, and without rights its priority cannot be raised. What it has stored is not
        stored again."""
        assert self._process is not None
        waited = _run_delay(self._process.pid) - self._run_delay
        is_starved = waited > _STARVED_SHARE * (time.monotonic() - self._looked_at)
        if not is_starved or self._priority >= (Priority.ORDINARY if self._awaited else Priority.LOW):
            self._watch()
            return
        log.warning("an upload is late because the processors are never idle: another process takes it")
        if not self._awaited:
            self._usual = Priority.LOW
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
    """After which an order is late. None of a removal is urgent."""
    if isinstance(order, PruneOrder):  # and who waits for one, waits for one request of it, which is not cut off
        return math.inf
    spread_seconds = order.spread_seconds if isinstance(order, PartOrder) else 0.0
    return max(_LATE_FACTOR * spread_seconds, LATE_LEAST_SECONDS)


def _apply_priority(pid: int, priority: Priority) -> None:
    """Set it for all threads of a process: on Linux, priorities are theirs.

    Raises OSError where that is refused. Where only SCHED_IDLE is, IDLE is LOW.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0) if priority is Priority.ORDINARY else 19
    if sys.platform != "linux":
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        return
    policy = os.SCHED_IDLE if priority is Priority.IDLE else os.sched_getscheduler(0)
    ignored = OSError if priority is Priority.IDLE else ProcessLookupError
    done: set[int] = set()
    while threads := _threads_of(pid) - done:  # one that starts meanwhile may have what its maker had before
        for thread in threads:
            with contextlib.suppress(ignored):
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
        done |= threads


def _run_delay(pid: int) -> float:
    """Seconds for which its threads were ready to run and had no processor; 0 where the system does not tell."""
    nanoseconds = 0
    for thread in _threads_of(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            nanoseconds += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def _threads_of(pid: int) -> set[int]:
    """Ids; none where the process has ended, or the system has no /proc."""
    with contextlib.suppress(OSError):
        return {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()}
    return set()
