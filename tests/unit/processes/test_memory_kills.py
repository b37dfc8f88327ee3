import os
from pathlib import Path

import pytest

from finetune_trainer.memory import cpu_limit, memory_kills, memory_limit


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/\n", "memory.events"),
        ("0::/kubepods/pod1\n", "kubepods/pod1/memory.events"),
        ("0::/kubepods/pod1\n", "memory.events"),
        ("5:cpu,cpuacct:/a\n4:memory:/b\n0::/\n", "memory/b/memory.oom_control"),
        ("4:memory:/docker/1\n", "memory/memory.oom_control"),
    ],
)
def test_the_counter_of_the_own_group_is_found(tmp_path: Path, groups: str, file: str) -> None:
    write(tmp_path / "groups", groups)
    write(tmp_path / file, "low 0\noom 4\noom_kill 3\n")
    assert memory_kills(tmp_path, tmp_path / "groups") == 3


def test_without_a_counter_nothing_was_killed(tmp_path: Path) -> None:
    write(tmp_path / "groups", "0::/\n3:memory:/x\n")
    write(tmp_path / "memory/memory.oom_control", "under_oom 0\n")
    assert memory_kills(tmp_path, tmp_path / "groups") == 0


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "2147483648\n"}, 2147483648),
        ("0::/pod\n", {"memory.max": "9\n", "pod/memory.max": "5\n"}, 5),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("4:memory:/b\n", {"memory/b/memory.limit_in_bytes": "7\n"}, 7),
        ("4:memory:/b\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_memory_limit_is_that_of_the_own_group(tmp_path, groups, files, expected) -> None:
    write(tmp_path / "groups", groups)
    for name, text in files.items():
        write(tmp_path / name, text)
    assert memory_limit(tmp_path, tmp_path / "groups") == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("5:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "1\n", "cpu,cpuacct/a/cpu.cfs_period_us": "9\n"}, 1),
        ("5:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, None),
    ],
)
def test_the_cpu_limit_is_the_quota_of_the_own_group_or_the_affinity(tmp_path, groups, files, expected) -> None:
    write(tmp_path / "groups", groups)
    for name, text in files.items():
        write(tmp_path / name, text)
    affinity = len(os.sched_getaffinity(0))
    assert cpu_limit(tmp_path, tmp_path / "groups") == min(expected or affinity, affinity)
