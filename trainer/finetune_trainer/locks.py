"""A lock between the processes of a node."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, which is created if it is missing.

    Waits as long as another process or thread holds it. The kernel releases the lock when its process ends; a file
    system without such locks is an OSError, because a lock that outlives its process would block the node for good.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, fallback_to_soft=False):
        yield
