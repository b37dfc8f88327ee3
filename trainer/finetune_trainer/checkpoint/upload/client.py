"""The rank's side of its uploader: sends orders, receives answers, and replaces a process that died."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ...errors import TrainerError
from ...failures import Failure
from ..format.orders import Answer, CommitOrder, Order, PartOrder, PruneOrder, Setup
from .shared_memory import SharedMemory
from .standby import ForkedUploader, take_uploader
from .uploader import EXPEDITE, LONGEST_MESSAGE

log = logging.getLogger(__name__)

_LATE_FACTOR, LATE_LEAST_SECONDS = 3.0, 60.0
"""An order is late after this multiple of the duration that its upload is spread over, a third of the save interval:
by then the next save is due."""
AWAITED_SECONDS = 5.0
"""An order that the rank is waiting for is late after this time."""
_STARVED_SHARE = 0.5
"""Share of the time of a late order: an uploader that waited longer than this for a processor is replaced."""
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.5, 30.0
"""Back-off before an uploader that died is replaced."""


class Priority(enum.IntEnum):
    """Scheduling priority of an uploader process."""

    IDLE = 0
    """SCHED_IDLE: only otherwise idle processors. A rank that wakes up preempts it at once, whereas a thread of
    low priority would keep the processor until its time slice ends (sched(7))."""
    LOW = 1
    """Niceness 19: a small share, even if no processor is ever idle."""
    ORDINARY = 2
    """The priority of its rank, while the rank only waits for the upload."""


class UploaderClient(Protocol):
    """Executes orders, one at a time. `snapshot` is the memory that a PartOrder refers to."""

    snapshot: SharedMemory

    def prepare(self) -> None:
        """Prepare for orders."""

    def send(self, order: Order) -> None:
        """Send the order; `receive` returns the answers."""

    def receive(self, timeout: float) -> Answer | None:
        """Return the next answer, or None if there is none within `timeout` seconds."""

    def expedite(self) -> None:
        """The rank waits for the open order: upload at full speed, with the priority of the rank."""

    def raise_priority(self) -> None:
        """The rank waits for the open order: give it the rank's priority, but keep its pace."""

    def restore_priority(self) -> None:
        """The rank no longer waits, although the order is still open."""

    def close(self) -> None:
        """Terminate the uploader; an open order is dropped."""


class UploaderProcess:
    """An uploader that is a process. `prepare` or the first order takes the one that this rank has forked at its start.

    A new process, `python -m finetune_trainer.checkpoint.upload.uploader`, replaces one that has died.
    """

    def __init__(self, setup: Setup) -> None:
        self.snapshot, self._orders = SharedMemory(name="snapshot"), SharedMemory(name="orders")
        self._setup = setup
        self._order_bytes = 0
        self._expedited = self._awaited = False
        self._usual = Priority.IDLE
        """The priority of the uploader while the rank does not wait for it."""
        self._priority = Priority.IDLE
        """The current priority of the process."""
        self._late_after = math.inf
        """Seconds after which the open order is late while the rank does not wait."""
        self._checked_at, self._check_at = 0.0, math.inf
        """When the process was last checked and when the next check is due, by time.monotonic()."""
        self._run_delay = 0.0
        """Total time the process had waited for a processor at the last check, in seconds."""
        self._back_off = _FIRST_BACK_OFF
        self._not_before = 0.0
        self._channel: socket.socket | None = None
        """Connection to the process; None: there is no process, or it has died."""
        self._process: subprocess.Popen[bytes] | ForkedUploader | None = None

    @property
    def pid(self) -> int | None:
        """Id of the process, which may have died; None before the first one."""
        return None if self._process is None else self._process.pid

    def prepare(self) -> None:
        """See UploaderClient."""
        if self._process is None:
            self._start()

    def send(self, order: Order) -> None:
        """See UploaderClient."""
        assert not self._order_bytes, "one order at a time"
        content = order.model_dump_json().encode()
        self._orders.array(len(content)).data[:] = content
        self._order_bytes, self._expedited, self._awaited = len(content), False, False
        self._late_after = _late_seconds(order)
        if not isinstance(order, CommitOrder):  # short, and a rank that waited for the parts also waits for it
            self._set_priority(self._usual)
        self._send_order()

    def receive(self, timeout: float) -> Answer | None:
        """See UploaderClient."""
        if not self._order_bytes:
            return None
        if time.monotonic() > self._check_at:
            self._check()
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
            return self._on_uploader_exit()
        answer = Answer.model_validate_json(content)
        if answer.done or answer.is_final:
            self._order_bytes, self._back_off = 0, _FIRST_BACK_OFF
        return answer

    def expedite(self) -> None:
        """See UploaderClient."""
        if self._order_bytes and not self._expedited:
            self._expedited = True
            self._write(EXPEDITE)
        self.raise_priority()

    def raise_priority(self) -> None:
        """See UploaderClient."""
        if self._order_bytes and not self._awaited:
            self._awaited = True
            self._set_priority(Priority.ORDINARY)
            self._schedule_check()

    def restore_priority(self) -> None:
        """See UploaderClient."""
        if self._awaited:
            self._awaited = False
            self._set_priority(self._usual)
            self._schedule_check()

    def close(self) -> None:
        """See UploaderClient."""
        self._kill_and_reap()
        self.snapshot.close()
        self._orders.close()

    def _send_order(self) -> None:
        """Send the open order to the running process, or to a new one."""
        if self._channel is None:
            self._start()
        self._write(b"%d" % self._order_bytes)
        if self._expedited:
            self._write(EXPEDITE)
        self._schedule_check()

    def _start(self) -> None:
        if (forked := take_uploader()) is not None:
            self._process, self._channel = forked, forked.channel
        else:
            self._process, self._channel = _started()
        # Set from here, not by the process itself, because its imports must not slow training down either.
        self._priority = Priority.ORDINARY
        if not self._awaited:
            self._set_priority(self._usual)
        descriptors = [self._orders.descriptor, self.snapshot.descriptor]
        self._write(self._setup.model_dump_json().encode(), descriptors)

    def _write(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._channel is not None:  # otherwise `_send_order` sends it to the next process
            with contextlib.suppress(ConnectionError):  # it has just died, which `receive` handles
                socket.send_fds(self._channel, [message], descriptors)

    def _on_uploader_exit(self) -> Answer:
        code = self._kill_and_reap()
        self._not_before = time.monotonic() + self._back_off
        self._back_off = min(2 * self._back_off, _LONGEST_BACK_OFF)
        text = f"the uploader exited with status {code}; a new process takes over its order"
        log.warning(text)
        return Answer(failure=Failure.of(TrainerError(text)))

    def _set_priority(self, priority: Priority) -> None:
        """Set the priority. Without CAP_SYS_NICE it cannot be raised and is kept."""
        if self._channel is None or self._process is None or priority is self._priority:
            return
        with contextlib.suppress(OSError):
            _apply_priority(self._process.pid, priority)
            self._priority = priority

    def _schedule_check(self) -> None:
        """Check the process when the order is late, counted from now."""
        late_seconds = self._late_after
        if self._awaited and not math.isinf(late_seconds):
            late_seconds = AWAITED_SECONDS
        self._checked_at = time.monotonic()
        self._check_at = self._checked_at + late_seconds
        self._run_delay = 0.0 if self._process is None else _run_delay(self._process.pid)

    def _check(self) -> None:
        """Replace the process of a late order if it gets no processor time.

        Other processes may starve it for as long as they run, and without CAP_SYS_NICE its priority cannot be raised,
        but a new process starts with a higher one. Blobs that are already stored are not uploaded again.
        """
        assert self._process is not None
        waited = _run_delay(self._process.pid) - self._run_delay
        is_starved = waited > _STARVED_SHARE * (time.monotonic() - self._checked_at)
        if not is_starved or self._priority >= (Priority.ORDINARY if self._awaited else Priority.LOW):
            self._schedule_check()
            return
        log.warning("an upload is late because no processor is idle: a new process with a higher priority takes over")
        if not self._awaited:
            self._usual = Priority.LOW
        self._kill_and_reap(kill=True)

    def _kill_and_reap(self, *, kill: bool = False) -> int | None:
        """Close the channel, which makes an uploader exit, and wait for the process; `kill`: with SIGKILL.

        Returns the exit status, or None if there was no process.
        """
        if self._channel is not None:
            with contextlib.suppress(OSError):  # the uploader has closed its end
                self._channel.shutdown(socket.SHUT_RDWR)  # processes that this rank has forked may have it open too
            self._channel.close()
        self._channel = None
        if self._process is not None and kill:
            self._process.kill()
        return None if self._process is None else self._process.wait()

    def _replace(self, timeout: float) -> None:
        """Start a new process with the same order once the back-off has passed."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
        if time.monotonic() < self._not_before:
            return
        self._send_order()


def _started() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start a new process; returns it and the rank's end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", f"{__package__}.uploader", f"--channel={theirs.fileno()}"]
    with theirs:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)), ours


def _late_seconds(order: Order) -> float:
    """Seconds after which an order is late; pruning never is."""
    if isinstance(order, PruneOrder):  # a rank that waits for pruning waits for one request, which is not interrupted
        return math.inf
    spread_seconds = order.spread_seconds if isinstance(order, PartOrder) else 0.0
    return max(_LATE_FACTOR * spread_seconds, LATE_LEAST_SECONDS)


def _apply_priority(pid: int, priority: Priority) -> None:
    """Set the priority of all threads of a process: on Linux each thread has its own.

    Raises OSError if that is not permitted. If only SCHED_IDLE is not permitted, IDLE becomes LOW.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0) if priority is Priority.ORDINARY else 19
    if sys.platform != "linux":
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        return
    policy = os.SCHED_IDLE if priority is Priority.IDLE else os.sched_getscheduler(0)
    ignored = OSError if priority is Priority.IDLE else ProcessLookupError
    done: set[int] = set()
    while threads := _threads_of(pid) - done:  # a new thread may have inherited the old priority
        for thread in threads:
            with contextlib.suppress(ignored):
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
        done |= threads


def _run_delay(pid: int) -> float:
    """Seconds for which the threads were runnable without a processor; 0 if the system does not report it."""
    nanoseconds = 0
    for thread in _threads_of(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            nanoseconds += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def _threads_of(pid: int) -> set[int]:
    """Thread ids; empty if the process has ended or the system has no /proc."""
    with contextlib.suppress(OSError):
        return {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()}
    return set()
