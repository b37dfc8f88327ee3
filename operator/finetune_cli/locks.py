"""File locks between processes. The kernel releases them when their process ends, also when it is killed."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock


def try_lock(path: Path) -> "FileLock | None":
    """Return the acquired lock, or None if another process holds it.

    The lock is held until `release()` is called or the object is garbage collected.
    """
    from filelock import FileLock, Timeout  # the import takes 8 ms, and most commands use no lock

    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would remain after its process is killed. thread_local=False, because any thread may release it.
    lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock."""
    if not path.exists():
        return False
    lock = try_lock(path)
    if lock is None:
        return True
    lock.release()
    return False
