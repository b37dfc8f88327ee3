"""Ports for processes that bind them seconds later, after importing their libraries."""

import random
import socket
from contextlib import ExitStack

_PORTS = range(20_000, 30_000)
"""Below the ephemeral ports of Linux (from 32768) and macOS (from 49152), which connections of other processes may take
in the meantime."""


def free_ports(count: int) -> list[int]:
    """Return different free ports of 127.0.0.1 and ::1. Raises OSError if there are not enough."""
    ports: list[int] = []
    has_ipv6 = _has_ipv6()
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                break
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                if has_ipv6:
                    held.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
            except OSError:  # in use
                continue
            ports.append(port)
    if len(ports) < count:
        raise OSError(f"127.0.0.1 has {len(ports)} free ports in {_PORTS.start}..{_PORTS.stop - 1}, not {count}")
    return ports


def _has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
