"""Processes of the cluster: each has a log, errors include the end of it, and none outlives its tests.

Every process is started with `setpriv --pdeathsig`: the kernel kills it when its parent thread exits for any reason.
Therefore start them only from threads that live as long as the processes should.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .missing import MissingError

T = TypeVar("T")
TAIL = 2500
GO_SETTINGS = {"GOMAXPROCS": "2", "GOGC": "400"}
"""Most daemons are Go programs. With the default GOGC of 100, the API server collects garbage for a fifth of its CPU
time; with 400 its resident memory grows from 470 to 720 MB."""


class NotInTimeError(AssertionError):
    """A condition did not become true in time; the message includes the end of the log."""


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-TAIL:] if log.exists() else "(no log)"


def until(condition: Callable[[], T | None], *, within: float, what: str, log: Path | None = None) -> T:
    """Poll, less often the longer it takes, and return the value of the condition as soon as it is true.

    Most conditions start a process, which takes a tenth of a second of the processors that they wait for.
    """
    started = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - started
        if waited > within:
            raise NotInTimeError(f"timed out after {within:g} s: {what}" + (f"\n{log}:\n{tail(log)}" if log else ""))
        time.sleep(min(0.5, max(0.05, waited / 10)))
    return value


def with_parent_death_signal(command: Sequence[str | Path]) -> list[str]:
    if shutil.which("setpriv") is None:
        raise MissingError("setpriv is not on the path (apt-get install util-linux)")
    return ["setpriv", "--pdeathsig", "KILL", *map(str, command)]


def run(*command: str | Path, within: float = 60, stdin: str | None = None) -> str:
    """Run a command to its end; returns its output."""
    done = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, check=False, timeout=within
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr[-TAIL:]}")
    return done.stdout


class Daemon:
    """One process that runs until it is killed."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                with_parent_death_signal(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ) | GO_SETTINGS | (environment or {}),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, condition: Callable[[], T | None], *, within: float, what: str) -> T:
        """Poll while the process is running."""

        def check() -> T | None:
            if (status := self.process.poll()) is not None:
                raise NotInTimeError(f"{self.name} exited with {status}\n{self.log}:\n{tail(self.log)}")
            return condition()

        return until(check, within=within, what=f"{self.name}: {what}", log=self.log)

    def kill(self) -> None:
        """Send SIGKILL to its session, and reap it. A clean shutdown is not necessary."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
