"""Ports for processes that bind them seconds later, when they have imported their libraries."""

import random
import socket
from contextlib import ExitStack

_PORTS = range(20_000, 30_000)
"""Below those that Linux (32768 on) and macOS (49152 on) hand out to whoever names none: of those, any connection of
another process may take the chosen one meanwhile."""


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody holds now. Raises OSError if there are not so many."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                break
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:  # another's
                continue
            ports.append(port)
    if len(ports) < count:
        raise OSError(f"127.0.0.1 has {len(ports)} free ports in {_PORTS.start}..{_PORTS.stop - 1}, not {count}")
    return ports
