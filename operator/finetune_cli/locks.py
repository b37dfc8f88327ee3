"""Locks between processes. The kernel releases them when their process ends, however it ends."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock


def try_lock(path: Path) -> "FileLock | None":
    """The lock, held until `release()` or until nothing refers to it; None if another process holds it."""
    from filelock import FileLock, Timeout  # its import takes 8 ms, and most commands lock nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive a process that is killed. Not per thread, because any thread may release it.
    lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def is_locked(path: Path) -> bool:
    """True if another process has the lock."""
    if not path.exists():
        return False
    lock = try_lock(path)
    if lock is None:
        return True
    lock.release()
    return False
