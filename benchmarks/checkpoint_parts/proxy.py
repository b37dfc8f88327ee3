"""A TCP proxy on loopback that limits the rate, in its own process.

A network link uses no CPU time, so the proxy and the server behind it use only otherwise idle CPU time.

    python proxy.py --upstream 127.0.0.1:8333 --megabytes-per-second 200

Each direction has this rate, which all connections share, as with a network card. Prints its port, and serves until its
standard input is closed, which happens when its parent process ends. 1 MB is 1e6 bytes.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK_BYTES = 256 << 10
"""1.3 ms at 200 MB/s: long enough for Python, short enough for a steady rate."""
_BURST_SECONDS = 0.01
"""Amount that may be sent at once after a pause. Compensates for sleeps that are too long."""
_HOST = "127.0.0.1"


class TokenBucket:
    """A rate limit that threads share. `clock` returns seconds."""

    def __init__(
        self, bytes_per_second: float, *, burst_seconds: float = _BURST_SECONDS, clock: Callable[[], float]
    ) -> None:
        self._rate, self._burst, self._clock = bytes_per_second, burst_seconds, clock
        self._free_at = clock()
        """Time at which everything taken so far has been sent."""
        self._lock = threading.Lock()

    def take(self, count: int) -> float:
        """Take `count` bytes, and return the seconds to wait before they may be sent."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst) + count / self._rate
            return max(0.0, self._free_at - now)


def _pump(source: socket.socket, target: socket.socket, bucket: TokenBucket) -> None:
    """Copy until the source is closed, then close the target."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with contextlib.suppress(OSError):  # one side has closed; the target is shut down below
        while count := source.recv_into(buffer):
            if (wait := bucket.take(count)) > 0:
                time.sleep(wait)
            target.sendall(buffer[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _join(client: socket.socket, upstream: tuple[str, int], up: TokenBucket, down: TokenBucket) -> None:
    with client, contextlib.suppress(ConnectionRefusedError), socket.create_connection(upstream) as server:
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = threading.Thread(target=_pump, args=(server, client, down), daemon=True)
        answers.start()
        _pump(client, server, up)
        answers.join()


def serve(upstream: tuple[str, int], bytes_per_second: float) -> None:
    """Print the port and serve forever."""
    up, down = (TokenBucket(bytes_per_second, clock=time.monotonic) for _ in range(2))
    with socket.create_server((_HOST, 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_join, args=(client, upstream, up, down), daemon=True).start()


def use_idle_scheduling(pid: int) -> None:
    """Set the policy SCHED_IDLE for all threads of a process; new ones inherit it. Other threads preempt them at once.

    The process must be in this session, because Linux with autogrouping divides CPU time among sessions first.
    """
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def limited_link(upstream_port: int, megabytes_per_second: float) -> Iterator[int]:
    """Run a proxy during the block, and return its port."""
    command = [sys.executable, __file__, f"--upstream={_HOST}:{upstream_port}"]
    command += [f"--megabytes-per-second={megabytes_per_second}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, process_group=0) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    """Entry point of the proxy process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--upstream", required=True, help="host:port of the server")
    parser.add_argument("--megabytes-per-second", type=float, required=True, help="rate per direction")
    options = parser.parse_args()
    use_idle_scheduling(os.getpid())
    host, _, port = options.upstream.rpartition(":")
    arguments = ((host, int(port)), options.megabytes_per_second * 1e6)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
