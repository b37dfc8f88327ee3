"""Runs the ranks of one pod: forwards their output and signals, and stops all ranks when one fails."""

import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType

from finetune_api.exit_codes import ExitCode

from ..logs import readable_lines
from .forkclient import RankProcess
from .outcome import RankExit

_LINES_KEPT = 40
_LONGEST_LINE = 65536


class Output:
    """A pipe for the output of a process. Lines are copied to stdout, and the last ones are kept for error reports.

    `write_end` is the process's end; the caller closes it after passing it on.
    """

    def __init__(self, label: str) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._label = label
        self._partial = b""

    def pump(self) -> bool:
        """Read all available output. Returns False when no process has the other end open anymore."""
        while True:
            try:
                data = os.read(self.read_end, _LONGEST_LINE)
            except BlockingIOError:
                return True
            if not data:
                self.flush()
                return False
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._emit(line)
            if len(self._partial) > _LONGEST_LINE:
                self.flush()

    def flush(self) -> None:
        """Emit the incomplete last line."""
        self._emit(self._partial)
        self._partial = b""

    def _emit(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        if not line:
            return
        self.last_lines.extend(readable_lines(line))
        try:
            # Lines of the trainer's logger are JSON and contain the rank. Other lines get a prefix.
            print(line if line.startswith("{") else f"[{self._label}] {line}", flush=True)
        except OSError:
            return  # stdout is closed; the ranks continue


@dataclass
class _Member:
    rank: int
    process: RankProcess
    output: Output
    ended: RankExit | None = None


class RankGroup:
    """Watches ranks until all have exited.

    When a rank fails, the others get SIGTERM, and SIGKILL after `grace_seconds`. The first SIGTERM or SIGINT of the
    supervisor is forwarded to the ranks as SIGTERM. The time that they may take to save is limited only by the grace
    period of the pod.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._members: dict[int, _Member] = {}
        self._selector = selectors.DefaultSelector()
        self._stop_requested = False
        self._stop_passed_on = False
        self._failed = False
        self._deadline: float | None = None

    def catch_signals(self, stack: ExitStack) -> None:
        """Handle SIGTERM and SIGINT in the event loop until `stack` is closed. Call it in the main thread."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
            stack.callback(end.close)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False))
        self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(4096))

        def on_stop(_signum: int, _frame: FrameType | None) -> None:
            self._stop_requested = True

        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, on_stop))

    def watch(self, output: Output) -> None:
        """Copy the output of a process that is not a rank."""
        os.close(output.write_end)
        self._register(output.read_end, lambda: self._pump(output))

    def add(self, rank: int, process: RankProcess, output: Output) -> None:
        """Watch a rank that has been requested."""
        member = _Member(rank, process, output)
        self._members[rank] = member
        self.watch(output)
        self._register(process, lambda: self._check(member))

    def wait(self) -> list[RankExit]:
        """Block until all ranks have exited, and return their exits."""
        while any(member.ended is None for member in self._members.values()):
            timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            for key, _ in self._selector.select(timeout):
                key.data()
            if self._stop_requested and not self._stop_passed_on:
                self._pass_on_stop()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._kill_all(ExitCode.INTERNAL_ERROR)
        for member in self._members.values():
            # The pipe may still contain the last output of the rank. It may remain open, if a grandchild inherited it.
            if member.output.pump():
                member.output.flush()
        return [member.ended for member in self._members.values() if member.ended is not None]

    def last_lines(self, rank: int) -> list[str]:
        """Return the last log lines of a rank."""
        return list(self._members[rank].output.last_lines)

    def _register(self, source: int | RankProcess, handler: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _pump(self, output: Output) -> None:
        if not output.pump():
            self._selector.unregister(output.read_end)

    def _check(self, member: _Member) -> None:
        descriptor = member.process.fileno()
        code = member.process.poll()
        if code is None:
            return
        self._selector.unregister(descriptor)
        terminated = self._failed and code == -signal.SIGTERM
        self._record(member, RankExit(member.rank, code, time.monotonic(), terminated, member.process.error))

    def _record(self, member: _Member, ended: RankExit) -> None:
        member.ended = ended
        if ended.code in (ExitCode.DONE, ExitCode.STOPPED) or ended.ended_by_us or self._failed:
            return
        self._failed = True
        self._deadline = time.monotonic() + self._grace_seconds
        self._terminate_all()

    def _pass_on_stop(self) -> None:
        self._stop_passed_on = True
        if any(member.process.pid is None for member in self._members.values()):
            # Training starts when all ranks run. Until then there is nothing to save.
            self._kill_all(ExitCode.STOPPED)
        else:
            self._terminate_all()

    def _terminate_all(self) -> None:
        for member in self._members.values():
            if member.ended is None:
                member.process.send_signal(signal.SIGTERM)

    def _kill_all(self, code: ExitCode) -> None:
        for member in self._members.values():
            if member.ended is None:
                self._selector.unregister(member.process)
                member.process.kill()
                self._record(member, RankExit(member.rank, code, time.monotonic(), ended_by_us=True))
