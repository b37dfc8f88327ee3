"""The memory of a process as the kernel counts it."""

import mmap
import os
from pathlib import Path

from finetune_trainer.memory import (
    own_bytes,
    peak_own_bytes,
    probe_kills,
    record_probe_kills,
    reset_peak,
    resident_bytes,
)

SIZE = 64 << 20
ROUNDING = 8 << 20
"""The kernel counts in batches, and Python allocates, too."""


def test_a_freed_tensor_is_in_the_peak_until_a_new_one_begins() -> None:
    pid = os.getpid()
    before, resident = own_bytes(pid), resident_bytes(pid)
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * SIZE)
        assert abs(own_bytes(pid) - before - SIZE) < ROUNDING
        assert abs(resident_bytes(pid) - resident - SIZE) < ROUNDING
    assert peak_own_bytes(pid) > before + SIZE - ROUNDING
    reset_peak()
    assert peak_own_bytes(pid) < before + SIZE - ROUNDING


def test_a_process_that_has_exited_uses_no_memory() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert (resident_bytes(pid), own_bytes(pid)) == (0, 0)


def test_kills_during_a_measurement_are_known_to_the_supervisor(tmp_path: Path) -> None:
    assert probe_kills(tmp_path) == 0
    record_probe_kills(tmp_path, 2)
    assert probe_kills(tmp_path) == 2
