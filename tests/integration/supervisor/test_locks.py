"""Locks between processes, of the trainer and of the command line."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune_cli.locks import try_lock
from finetune_trainer.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
{hold}
print("held", flush=True)
time.sleep(600)
"""
TRAINER = "from finetune_trainer.locks import locked; held = locked(Path(sys.argv[1])); held.__enter__()"
COMMAND = "from finetune_cli.locks import try_lock; held = try_lock(Path(sys.argv[1])); assert held"


@pytest.mark.parametrize("hold", [TRAINER, COMMAND], ids=["trainer", "command line"])
def test_a_killed_process_releases_its_lock(tmp_path: Path, hold: str) -> None:
    path = tmp_path / "new" / "folder" / "lock"
    entered = threading.Event()

    def wait_for_it() -> None:
        with locked(path):
            entered.set()

    command = [sys.executable, "-c", HOLDER.format(hold=hold), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert try_lock(path) is None
            waiting = threading.Thread(target=wait_for_it)
            waiting.start()
            assert not entered.wait(0.2)
        finally:
            holder.kill()
    waiting.join(30)
    assert entered.is_set()
    lock = try_lock(path)
    assert lock is not None
    lock.release()


def test_two_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with locked(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(most), max(most)) == (20, 1)
