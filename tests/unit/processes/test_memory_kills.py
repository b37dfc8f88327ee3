from pathlib import Path

import pytest

from finetune_trainer.memory import memory_kills


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
