"""An OCI registry in memory, for charts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import binaries
from .daemons import Daemon


@contextmanager
def running_registry(folder: Path, say: Callable[[str], None]) -> Iterator[str]:
    """The address of a registry on loopback, without TLS and without users."""
    log = folder / "registry.log"
    daemon = Daemon("registry", [binaries.built(binaries.REGISTRY, say) / "registry"], log=log)
    try:
        yield daemon.until(lambda: _first_line(log), within=30, what="prints its address")
    finally:
        daemon.kill()


def _first_line(log: Path) -> str:
    line, end, _ = log.read_text().partition("\n")
    return line if end else ""
