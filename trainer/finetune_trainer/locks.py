"""Locks between the processes of a node."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, which is created if it is missing.

    Blocks while another process or thread holds the lock. The kernel releases it when the process exits. Raises OSError
    if the file system does not support such locks: a lock that outlives its process would block the node permanently.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, fallback_to_soft=False):
        yield
