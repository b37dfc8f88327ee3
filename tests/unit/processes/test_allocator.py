"""The C library's allocator returns freed tensors to the system in processes of the trainer."""

import os
import subprocess
import sys

import pytest

from finetune_trainer.allocator import MMAP_THRESHOLD_BYTES, return_freed_memory

BLOCK = MMAP_THRESHOLD_BYTES + 4096
# Blocks that stay between blocks that are freed, as the inputs of layers between their temporary tensors.
SCRIPT = f"""
import ctypes, os, sys
from pathlib import Path
from finetune_trainer.allocator import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "set":
    assert return_freed_memory(os.environ)
libc.free(libc.malloc({6 * BLOCK}))  # glibc raises its own threshold to the size of this block
before = resident()
blocks = [libc.malloc({BLOCK}) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, {BLOCK})
for block in blocks[::2]:
    libc.free(block)
print(round((resident() - before) / {BLOCK}))
"""


@pytest.mark.parametrize(("setting", "kept"), [("set", 8), ("default", 16)])
def test_freed_blocks_between_others_are_returned(setting: str, kept: int) -> None:
    command = [sys.executable, "-c", SCRIPT, setting]
    found = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=True).stdout
    assert int(found) == kept


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_user_are_kept(name: str) -> None:
    assert not return_freed_memory({name: "x"})
