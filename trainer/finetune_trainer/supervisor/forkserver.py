"""The fork server: imports the libraries once and forks a rank for each request.

    python -m finetune_trainer.supervisor.forkserver --socket PATH

Protocol, over a Unix stream socket with one connection per rank:

    client -> server   {"env": {...}, "cwd": "...", "target": "module:function", "argument": "..."}\\n
                       with one file descriptor (SCM_RIGHTS) for the rank's stdout and stderr
    server -> client   {"pid": 1234}\\n   then   {"exit": 0}\\n   (negative: terminated by that signal)
                       or {"error": "..."}\\n for an invalid request
    client -> server   {"signal": 15}\\n  any number of times

When a client closes its connection, the process group of its rank is killed. Clients may connect while the libraries
are being imported; their requests wait. The server itself runs no computation (see preload.py) and has one thread. It
exits on SIGTERM or, with `--lifeline`, when its standard input is closed, which happens when the process that started
it exits.
"""

import argparse
import ctypes
import fcntl
import importlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from finetune_api.constants import Stage
from finetune_api.exit_codes import ExitCode

from ..errors import is_program_error
from .preload import import_libraries, prepare_environment, renew_process

_PR_SET_PDEATHSIG = 1
_MAX_REQUEST_BYTES = 4 << 20
_CHUNK = 65536


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Yield the path of a Unix socket in a form that is shorter than the kernel's limit of 108 bytes."""
    folder = os.open(path.parent, os.O_DIRECTORY | os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """Return a listening Unix socket that only this user may connect to. Replaces an existing file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_address(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    listener.listen(128)
    return listener


@dataclass
class _Client:
    """One connection and the rank that it has requested."""

    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    pid: int | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Errors are ignored: the event loop will see that the client has closed its connection."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def close(self) -> None:
        self.connection.close()
        while self.descriptors:
            os.close(self.descriptors.pop())


class ForkServer:
    """The event loop. It has one thread, and handlers do not block."""

    def __init__(self, listener: socket.socket, *, lifeline: int | None = None) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._clients: dict[int, _Client] = {}
        self._environ = dict(os.environ)
        self._running = True
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)
        if lifeline is not None:
            self._selector.register(lifeline, selectors.EVENT_READ, self._stop)

    def serve(self) -> None:
        """Serve until SIGTERM or until the lifeline is closed, then kill the remaining ranks."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # from now on, the selector watches the lifeline
        while self._running:
            for key, _ in self._selector.select():
                key.data()
        for client in list(self._clients.values()):
            self._drop(client)

    def _on_term(self, _signum: int, _frame: FrameType | None) -> None:
        self._running = False

    def _stop(self) -> None:
        self._running = False

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(client))

    def _receive(self, client: _Client) -> None:
        """Read all available data before handling it: no rank is forked for a client that has already disconnected."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(client.connection, _CHUNK, 4)
            except BlockingIOError:
                break
            except OSError:
                data, descriptors = b"", []
            client.descriptors += descriptors
            client.received += data
            if not data or len(client.received) > _MAX_REQUEST_BYTES:
                self._drop(client)
                return
        *lines, rest = bytes(client.received).split(b"\n")
        client.received = bytearray(rest)
        for line in lines:
            self._handle(client, line)

    def _handle(self, client: _Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            if client.pid is None:
                self._fork(client, _Request.parse(request))
            else:
                os.kill(client.pid, int(request["signal"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            client.send({"error": f"invalid request: {type(error).__name__}: {error}"})

    def _fork(self, client: _Client, request: "_Request") -> None:
        if not client.descriptors:
            raise ValueError("the request must include a file descriptor for the output of the rank")
        # Blocked until the rank has a handler (stop.py), so that an earlier SIGTERM is delivered then and does not kill
        # the rank.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        server = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                self._become_rank(client.descriptors[0], request, server)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        client.pid = pid
        os.close(client.descriptors.pop(0))
        client.send({"pid": pid})

    def _become_rank(self, output: int, request: "_Request", server: int) -> NoReturn:
        """Run in the child: release the server's resources, run the target and exit. Never returns."""
        code: int = ExitCode.INTERNAL_ERROR
        try:
            os.setsid()
            _die_with_parent(server)
            _redirect(output)
            self._release()
            os.environ.clear()
            os.environ.update(request.env)
            os.chdir(request.cwd)
            renew_process(self._environ)
            code = request.run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else ExitCode.INTERNAL_ERROR if ended.code else 0
        except BaseException as error:
            code = ExitCode.PROGRAM_ERROR if is_program_error(error) else ExitCode.INTERNAL_ERROR
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _release(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._woken, self._waker):
            end.close()
        for client in self._clients.values():
            client.close()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(_CHUNK)
        for client in list(self._clients.values()):
            if client.pid is not None and os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                status = self._kill_and_reap(client.pid)
                client.pid = None
                client.send({"exit": os.waitstatus_to_exitcode(status)})
                self._drop(client)

    def _kill_and_reap(self, pid: int) -> int:
        """Kill the other processes of the rank's group (such as data loader workers), then reap the rank.

        The order matters: the id of the group cannot be reused before the rank is reaped.
        """
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # the rank has not called setsid yet
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]

    def _drop(self, client: _Client) -> None:
        if client.pid is not None:
            self._kill_and_reap(client.pid)
        self._clients.pop(client.connection.fileno(), None)
        self._selector.unregister(client.connection)
        client.close()


@dataclass(frozen=True)
class _Request:
    """What to run, and its environment and working directory."""

    env: dict[str, str]
    cwd: str
    module: str
    function: str
    argument: str

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "_Request":
        env = data["env"]
        if not all(isinstance(part, str) for item in env.items() for part in item):
            raise ValueError("env must map strings to strings")
        module, _, function = str(data["target"]).partition(":")
        return cls(env=env, cwd=str(data["cwd"]), module=module, function=function, argument=str(data["argument"]))

    def run(self) -> int:
        """Import and call the target. Only the child does so, because the module may be on its PYTHONPATH only."""
        for folder in reversed(self.env.get("PYTHONPATH", "").split(os.pathsep)):
            if folder and folder not in sys.path:
                sys.path.insert(0, folder)
        result = getattr(importlib.import_module(self.module), self.function)(Path(self.argument))
        return int(result)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """Handle SIGCHLD, because Python writes to the wakeup descriptor only for signals with a Python handler."""


def _die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the server exits or is killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(ExitCode.INTERNAL_ERROR)


def _redirect(output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def watch_lifeline(descriptor: int) -> None:
    """Let SIGIO terminate this process when the other end of a pipe is closed, also during an import."""
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([descriptor], [], [], 0)[0]:  # closed before O_ASYNC was set
        sys.exit(0)


def main() -> NoReturn:
    """Parse the command line, listen, import, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_trainer.supervisor.forkserver", description=__doc__.split("\n")[0]
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, help="Unix socket to listen on")
    place.add_argument("--listener", type=int, metavar="FD", help="inherited descriptor of a listening Unix socket")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu", help="device of the ranks")
    parser.add_argument("--stage", type=Stage, choices=tuple(Stage), help="only stage of the ranks; default: any")
    parser.add_argument("--lifeline", action="store_true", help="exit when standard input is closed")
    arguments = parser.parse_args()
    lifeline = 0 if arguments.lifeline else None
    if lifeline is not None:
        watch_lifeline(lifeline)
    listener = listen(arguments.socket) if arguments.socket else socket.socket(fileno=arguments.listener)
    prepare_environment(arguments.accelerator)
    import_libraries(arguments.accelerator, [arguments.stage] if arguments.stage else tuple(Stage))
    ForkServer(listener, lifeline=lifeline).serve()
    # A regular exit would destroy all modules, which takes seconds, while the process that stops this server waits.
    os._exit(0)


if __name__ == "__main__":
    main()
