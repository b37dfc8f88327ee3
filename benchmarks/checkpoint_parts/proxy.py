"""A network link of a stated rate: a TCP proxy on loopback. A process of its own, so that it shares no interpreter.

A link takes no processor, so both it and the server behind it get only what the others leave.

    python proxy.py --upstream 127.0.0.1:8333 --megabytes-per-second 200

Both directions have the rate, each for itself, and all connections share it, as those of one network card do. Prints
its port, and serves until its standard input ends, as it does with the process that started it. 1 MB is 1e6 bytes.
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
"""At 200 MB/s a chunk is 1.3 ms: coarse enough for Python, fine enough for a steady flow."""
_BURST_SECONDS = 0.01
"""What may be sent at once after a pause. Sleeps that were too long by less are made up for."""
_HOST = "127.0.0.1"


class TokenBucket:
    """A rate that many threads share. `clock` is in seconds."""

    def __init__(
        self, bytes_per_second: float, *, burst_seconds: float = _BURST_SECONDS, clock: Callable[[], float]
    ) -> None:
        self._rate, self._burst, self._clock = bytes_per_second, burst_seconds, clock
        self._free_at = clock()
        """When all that was taken has gone through."""
        self._lock = threading.Lock()

    def take(self, count: int) -> float:
        """Seconds to wait until `count` bytes more may be sent."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst) + count / self._rate
            return max(0.0, self._free_at - now)


def _pump(source: socket.socket, target: socket.socket, bucket: TokenBucket) -> None:
    """Until the source ends; that end is passed on."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with contextlib.suppress(OSError):  # either side has gone, and the other one is told below
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
    """Tell the port, then serve for ever."""
    up, down = (TokenBucket(bytes_per_second, clock=time.monotonic) for _ in range(2))
    with socket.create_server((_HOST, 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_join, args=(client, upstream, up, down), daemon=True).start()


def take_what_is_left(pid: int) -> None:
    """Give all threads of a process, and those to come, the policy SCHED_IDLE: whoever wakes gets the processor at
    once. It has to be of this session, for many kernels share the processors among sessions first."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def capped(upstream_port: int, megabytes_per_second: float) -> Iterator[int]:
    """The port of a proxy for the length of the block."""
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
    """Parse, serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--upstream", required=True, help="host:port of the server")
    parser.add_argument("--megabytes-per-second", type=float, required=True, help="of each direction")
    options = parser.parse_args()
    take_what_is_left(os.getpid())
    host, _, port = options.upstream.rpartition(":")
    arguments = ((host, int(port)), options.megabytes_per_second * 1e6)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
