"""Control groups of a node: one folder in every hierarchy of this machine, version 1 and 2."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .daemons import until
from .missing import MissingError

INHERITED = ("cpuset.cpus", "cpuset.mems")
"""Files that are empty in a new group of version 1; no process can join it until they are set."""

SHARES = {"cpu.shares": "4096", "cpu.weight": "400"}
"""CPU shares of all nodes together; a process outside has 1024 (version 2: a group has 100). Without it, the pods of
the cluster would share the time of one process, which is too little next to a compiler."""


def hierarchies() -> Iterator[tuple[Path, bool]]:
    """Mount points of control groups, and whether each is version 2."""
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, mount, kind, *_ = line.split()
        if kind in {"cgroup", "cgroup2"}:
            yield Path(mount), kind == "cgroup2"


@dataclass(frozen=True)
class ControlGroup:
    """`finetune-73/node-a`."""

    name: str

    def create(self) -> None:
        found = list(hierarchies())
        if not found:
            raise MissingError("no control groups are mounted below /sys/fs/cgroup")
        for mount, is_v2 in found:
            folder = mount
            for part in Path(self.name).parts:
                if is_v2:
                    hand_down_controllers(folder)
                folder = make_child(folder, part)
            give_share(mount / Path(self.name).parts[0])

    def remove(self) -> None:
        """Remove the groups of a dead node. The kernel needs a moment to remove the last process."""
        until(self._removed, within=10, what=f"control group {self.name} is removed")

    def _removed(self) -> bool:
        for mount, _ in hierarchies():
            top = mount / self.name
            below = [path for path in top.rglob("*") if path.is_dir()] if top.exists() else []
            for folder in [*sorted(below, reverse=True), top]:
                remove_if_empty(folder)
        return not self.exists()

    def exists(self) -> bool:
        return any((mount / self.name).exists() for mount, _ in hierarchies())


def remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it is not empty, or was already removed


def hand_down_controllers(folder: Path) -> None:
    """Version 2: enable controllers for child groups."""
    control = folder / "cgroup.subtree_control"
    try:
        available = (folder / "cgroup.controllers").read_text().split()
        for controller in available:
            control.write_text(f"+{controller}")
    except OSError as error:
        raise MissingError(f"{control} cannot be written, so pods cannot have limits: {error}") from error


def give_share(folder: Path) -> None:
    for file, share in SHARES.items():
        if (folder / file).exists():
            (folder / file).write_text(share)


def make_child(folder: Path, name: str) -> Path:
    child = folder / name
    try:
        child.mkdir(exist_ok=True)
        for file in INHERITED:
            if (child / file).exists() and not (child / file).read_text().strip():
                (child / file).write_text((folder / file).read_text())
    except OSError as error:
        raise MissingError(f"control groups of {folder} cannot be created: {error}") from error
    return child
