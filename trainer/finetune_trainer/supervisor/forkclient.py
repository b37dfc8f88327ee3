"""Client of the fork server (protocol: forkserver.py), and a class that starts one.

Only `wait` and `stop` block. A rank that is requested while the server is still importing has no pid yet.
"""

import json
import os
import select
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import finetune_api
import finetune_trainer
from finetune_api.constants import Stage
from finetune_api.exit_codes import ExitCode

from .forkserver import listen, short_address

RUN_RANK = "finetune_trainer.rank_main:run_rank"

_KILLED = -9
_STOP_SECONDS = 5.0


class RankProcess:
    """State of a rank as reported by its server. `fileno()` is readable when there is a new report."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self.pid: int | None = None
        """None until the server has forked the rank."""
        self.exit_code: int | None = None
        """None while the rank runs; negative: terminated by that signal."""
        self.error = ""
        """Why the rank does not run: the server has rejected the request or has exited. Empty otherwise."""

    def fileno(self) -> int:
        """Return the file descriptor of the connection, for a selector."""
        return self._connection.fileno()

    def poll(self) -> int | None:
        """Read the server's reports. Returns the exit code, or None while the rank runs."""
        while self.exit_code is None:
            try:
                data = self._connection.recv(4096)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                # The kernel kills the ranks when the server exits.
                self._finish(ExitCode.INTERNAL_ERROR if self.pid is None else _KILLED, "the fork server ended")
                break
            self._received += data
            *lines, rest = bytes(self._received).split(b"\n")
            self._received = bytearray(rest)
            for line in lines:
                self._take(json.loads(line))
        return self.exit_code

    def wait(self, timeout: float | None = None) -> int:
        """Block until the rank has exited. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the rank with process id {self.pid} has not exited within {timeout:g} s")
            select.select([self._connection], [], [], left)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal through the server, which knows whether the process id still belongs to this rank.

        A rank that has not been forked yet receives the signal after the fork.
        """
        if self.exit_code is not None:
            return
        with suppress(OSError):  # poll() reports a closed connection
            self._connection.sendall(json.dumps({"signal": int(number)}).encode() + b"\n")

    def kill(self) -> None:
        """Kill the rank and its children. If it has not been forked yet, cancel the request."""
        if self.exit_code is None:
            self._finish(_KILLED, "")

    def _take(self, message: dict[str, Any]) -> None:
        if "pid" in message:
            self.pid = int(message["pid"])
        elif "exit" in message:
            self._finish(int(message["exit"]), "")
        elif self.pid is None:
            self._finish(ExitCode.INTERNAL_ERROR, f"the fork server rejected the request: {message.get('error')}")

    def _finish(self, code: int, error: str) -> None:
        self.exit_code, self.error = code, error
        self._connection.close()


class ForkClient:
    """Requests ranks from the fork server that listens on a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start_rank(
        self,
        env: Mapping[str, str],
        argument: Path | str,
        stdout_fd: int,
        *,
        target: str = RUN_RANK,
        cwd: Path | None = None,
    ) -> RankProcess:
        """Request a rank that calls `target(Path(argument))` in the given environment.

        Its stdout and stderr are `stdout_fd`, which the caller may close afterwards. Raises ConnectionError if no
        server is listening.
        """
        request = {"env": dict(env), "cwd": str(cwd or Path.cwd()), "target": target, "argument": str(argument)}
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_address(self.path) as address:
                connection.connect(address)
            payload = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [payload], [stdout_fd])
            connection.sendall(payload[sent:])
        except OSError as error:
            connection.close()
            raise ConnectionError(f"no fork server is listening at {self.path}: {error}") from error
        connection.setblocking(False)
        return RankProcess(connection)


def _source_roots() -> list[str]:
    """Return the folders of this project's packages if they are not installed, so that the server can import them."""
    roots = [str(Path(package.__path__[0]).parent) for package in (finetune_trainer, finetune_api)]
    return [root for root in roots if root != sysconfig.get_path("purelib")]


class ForkServerProcess:
    """A fork server that this process starts. It exits with this process, even if that is killed, because its standard
    input is a pipe from this process."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        self.path = path
        self.process = process

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        accelerator: str = "cpu",
        stage: Stage | None = None,
        env: Mapping[str, str] | None = None,
        output: int | IO[Any] | None = None,
    ) -> "ForkServerProcess":
        """Start a fork server that listens on `path`.

        Clients may connect as soon as this returns, while the server imports the libraries of `stage` (None: of all
        stages), which takes seconds. Its stdout and stderr, mostly errors, go to `output`.
        """
        environ = dict(os.environ if env is None else env)
        environ["PYTHONPATH"] = os.pathsep.join([*_source_roots(), *filter(None, [environ.get("PYTHONPATH")])])
        with listen(path) as listener:
            descriptor = listener.fileno()
            command = [sys.executable, "-m", "finetune_trainer.supervisor.forkserver", "--lifeline"]
            command += ["--listener", str(descriptor), "--accelerator", accelerator]
            command += [] if stage is None else ["--stage", stage]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output if output is None else subprocess.STDOUT,
                env=environ,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        return cls(path, process)

    def stop(self) -> None:
        """Stop the server, which kills all of its ranks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.path.unlink(missing_ok=True)
