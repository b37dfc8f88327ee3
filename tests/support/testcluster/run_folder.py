"""The folder of one cluster: everything that it writes is in there, and its control groups have the folder's name.

Processes die with us, mounts and interfaces with the processes. Folder and groups are removed at the end, or, after a
SIGKILL, by the next cluster of anyone on this machine: a folder whose lock nobody holds is nobody's.
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
    assert lock is not None, f"{folder} is new and yet somebody's"
    (folder / "lock.new").rename(folder / "lock")  # not before it is ours: others sweep
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
    """Remove what clusters have left whose processes were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            lock = take(path)
        except OSError:
            continue  # another user's, or gone by now
        if lock is not None:
            remove(path.parent)
            lock.close()


def remove(folder: Path) -> None:
    ControlGroup(folder.name).remove()
    shutil.rmtree(folder)
