"""The folder of one cluster: it contains all files, and its control groups have the folder's name.

Processes are killed with their parent, mounts and interfaces are removed with the processes. Folder and groups are
removed at exit or, after a SIGKILL, by the next cluster of any user on this machine, which removes all folders that
nobody has locked.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .cgroups import ControlGroup

PREFIX = "finetune-cluster-"


@contextmanager
def run_folder() -> Iterator[Path]:
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = take(folder / "lock.new")
    assert lock is not None, f"{folder} is new but already locked"
    (folder / "lock.new").rename(folder / "lock")  # only after locking it, because others clean up unlocked folders
    try:
        yield folder
    finally:
        remove(folder)
        lock.close()


def take(path: Path) -> TextIO | None:
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def sweep() -> None:
    """Remove the remains of clusters whose processes were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            lock = take(path)
        except OSError:
            continue  # it belongs to another user, or was already removed
        if lock is not None:
            remove(path.parent)
            lock.close()


def remove(folder: Path) -> None:
    ControlGroup(folder.name).remove()
    shutil.rmtree(folder)
