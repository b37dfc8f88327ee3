"""How often the kernel has killed a process of this control group for memory."""

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def memory_kills(root: Path = CGROUP_ROOT, groups: Path = _OWN_GROUPS) -> int:
    """The group's `oom_kill` counter, of cgroup v2 or v1; 0 where there is none to read."""
    for file in _counter_files(root, groups):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        counters = dict(line.split(maxsplit=1) for line in lines)
        if "oom_kill" in counters:
            return int(counters["oom_kill"])
    return 0


def _counter_files(root: Path, groups: Path) -> list[Path]:
    """Candidates. In a container the group's own folder is usually mounted as the root itself."""
    files = []
    for line in groups.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            files += [root / name.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            files += [root / "memory" / name.lstrip("/") / "memory.oom_control", root / "memory" / "memory.oom_control"]
    return files
