"""The uploader that a rank forks at its start, and that waits until the rank's training begins.

A new Python process needs 0.6 s of CPU time to import what an uploader needs; a forked one has it already. The fork
must come first: a rank that has threads or a CUDA context cannot be forked safely. And the rank itself must fork: with
autogroups (sched(7)), SCHED_IDLE has an effect only among the processes of one session, and the fork server starts each
rank in a session of its own.
"""

import multiprocessing
import os
import signal
import socket
from multiprocessing.process import BaseProcess
from typing import NoReturn

from .uploader import run_uploader


class ForkedUploader:
    """A forked process that waits for its Setup. Like a Popen, with the rank's end of its channel."""

    def __init__(self, process: BaseProcess, channel: socket.socket) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.parent_pid = os.getpid()
        self.channel = channel
        self._process = process

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit status; negative: terminated by that signal."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


_standby: list[ForkedUploader] = []
"""The uploader of this rank, until it is taken. A test with several checkpoint managers forks one for each."""


def fork_uploader() -> None:
    """Fork the uploader of this rank. Call it while the process has one thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = multiprocessing.get_context("fork").Process(target=_run, args=(ours, theirs), daemon=True)
        process.start()
    _standby.append(ForkedUploader(process, ours))


def take_uploader() -> ForkedUploader | None:
    """Return the uploader that this process has forked; None without one, or if it has been taken before."""
    while _standby:
        uploader = _standby.pop()
        if uploader.parent_pid == os.getpid():
            return uploader
        uploader.channel.close()  # that of the process which this one was forked from
    return None


def _run(ours: socket.socket, theirs: socket.socket) -> NoReturn:
    """Run in the child. Its copy of the rank's end is closed, or it would not notice that the rank has exited."""
    ours.close()
    # Until its training begins, a rank has SIGTERM blocked or handles it in its own way.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    run_uploader(theirs)
