"""CPU and memory limits of this control group, and how many of its processes the kernel has killed for memory."""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60
"""cgroup v1 reports a number like 2**63 if there is no limit."""


def cpu_limit(root: Path = CGROUP_ROOT, groups: Path = _OWN_GROUPS) -> int:
    """Return the number of CPUs that this process may use by its affinity and its cgroup v1 or v2 quota, rounded up."""
    allowed = len(os.sched_getaffinity(0))
    for folder in _folders(root, groups, "cpu"):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            continue
        if quota.isdecimal():  # not `max` and not -1
            return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    return allowed


def memory_limit(root: Path = CGROUP_ROOT, groups: Path = _OWN_GROUPS) -> int | None:
    """Return the memory limit of the group in bytes, by cgroup v2 or v1; None if there is none."""
    for folder in _folders(root, groups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) < _NO_LIMIT:
                return int(text)
    return None


def memory_kills(root: Path = CGROUP_ROOT, groups: Path = _OWN_GROUPS) -> int:
    """Return the group's `oom_kill` counter, of cgroup v2 or v1; 0 if there is none."""
    names = ("memory.events", "memory.oom_control")
    for file in (folder / name for folder in _folders(root, groups, "memory") for name in names):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        counters = dict(line.split(maxsplit=1) for line in lines)
        if "oom_kill" in counters:
            return int(counters["oom_kill"])
    return 0


def _folders(root: Path, groups: Path, controller: str) -> list[Path]:
    """Return candidate folders. In a container, the group's folder is usually mounted as the root."""
    folders = []
    for line in groups.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folders += [root / name.lstrip("/"), root]
        elif controller in controllers.split(","):
            folders += [root / controllers / name.lstrip("/"), root / controller / name.lstrip("/"), root / controller]
    return folders
