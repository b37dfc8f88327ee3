"""CPU and memory limits of this control group, how many of its processes the kernel has killed for memory, and the
memory of single processes."""

import math
import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_PROBE_KILLS = "probe-memory-kills"
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


def resident_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the memory of a process that the kernel cannot reclaim, without files, also that which it shares with
    other processes. 0 if it has exited."""
    found = _sizes(proc / str(pid) / "status")
    return found.get("RssAnon", 0) + found.get("RssShmem", 0)


def own_bytes(pid: int, proc: Path = PROC) -> int:
    """Like `resident_bytes`, without what a fork shares with its parent until either writes to it.

    The kernel walks the page tables for this (proc(5), smaps_rollup), which takes milliseconds for each GiB.
    """
    return _sizes(proc / str(pid) / "smaps_rollup").get("Private_Dirty", 0)


def peak_own_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the peak of `own_bytes` since the process has started or `reset_peak` was called."""
    found = _sizes(proc / str(pid) / "status")
    shared = max(0, resident_bytes(pid, proc) - own_bytes(pid, proc))
    return max(0, found.get("VmHWM", 0) - found.get("RssFile", 0) - shared)


def reset_peak() -> None:
    """Begin a new peak of this process. Where that is not allowed, the peak since its start is measured."""
    with suppress(OSError):
        (PROC / "self" / "clear_refs").write_text("5")


def prefer_as_victim() -> None:
    """Let the kernel kill this process before the others of its group, if memory is used up."""
    with suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text("1000")


def record_probe_kills(scratch: Path, count: int) -> None:
    """Record how many processes the kernel has killed for memory while micro-batches were measured."""
    (scratch / _PROBE_KILLS).write_text(str(max(0, count)))


def probe_kills(scratch: Path) -> int:
    """Return that number, which says nothing about the ranks; 0 if nothing was measured."""
    try:
        return int((scratch / _PROBE_KILLS).read_text())
    except (OSError, ValueError):
        return 0


def _sizes(file: Path) -> dict[str, int]:
    """Return the sizes of a file in /proc, in bytes; empty if the process has exited."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) << 10 for name, size, _ in fields}


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
