"""Processes of the cluster: a log each, deadlines with the log's tail, and none that outlives its tests.

Every one is started below `setpriv --pdeathsig`: the kernel kills it when we die, however we die. So only start them
from a thread that lives as long as they shall.
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


class NotInTimeError(AssertionError):
    """Something that was waited for did not happen; the message ends with what the log said last."""


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-TAIL:] if log.exists() else "(no log)"


def until(condition: Callable[[], T | None], *, within: float, what: str, log: Path | None = None) -> T:
    """Poll, less often the longer it takes; the value of the condition as soon as it is true.

    Most conditions start a process, which takes a tenth of a second of the processors that they wait for.
    """
    started = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - started
        if waited > within:
            raise NotInTimeError(f"not within {within:g} s: {what}" + (f"\n{log}:\n{tail(log)}" if log else ""))
        time.sleep(min(0.5, max(0.05, waited / 10)))
    return value


def died_with_us(command: Sequence[str | Path]) -> list[str]:
    if shutil.which("setpriv") is None:
        raise MissingError("setpriv is not on the path (apt-get install util-linux)")
    return ["setpriv", "--pdeathsig", "KILL", *map(str, command)]


def run(*command: str | Path, within: float = 60, stdin: str | None = None) -> str:
    """A tool that does one thing and ends; what it printed."""
    done = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, check=False, timeout=within
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr[-TAIL:]}")
    return done.stdout


class Daemon:
    """One process that runs until it is ended."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                died_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ) | {"GOMAXPROCS": "2"} | (environment or {}),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, condition: Callable[[], T | None], *, within: float, what: str) -> T:
        """Poll as long as the process lives."""

        def check() -> T | None:
            if (status := self.process.poll()) is not None:
                raise NotInTimeError(f"{self.name} ended with {status}\n{self.log}:\n{tail(self.log)}")
            return condition()

        return until(check, within=within, what=f"{self.name}: {what}", log=self.log)

    def kill(self) -> None:
        """SIGKILL to its session, and reap. For all that is not the subject of a test: nothing here needs a goodbye."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
