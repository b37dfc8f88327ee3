"""Memory shared by two processes."""

import os
import subprocess
import sys

from finetune_trainer.checkpoint.upload.shared_memory import SharedMemory
from finetune_trainer.errors import FencedError, TrainerError
from finetune_trainer.failures import Failure

READ = """
import sys
from finetune_trainer.checkpoint.upload.shared_memory import SharedMemory
memory = SharedMemory(int(sys.argv[1]))
memory.array(6)[3:] = list(b"xyz")
print(memory.array(3).tobytes().decode(), end="")
"""


def test_two_processes_see_each_others_writes() -> None:
    memory = SharedMemory()
    memory.array(6)[:] = list(b"abcdef")
    command = [sys.executable, "-c", READ, str(memory.descriptor)]
    done = subprocess.run(command, pass_fds=[memory.descriptor], capture_output=True, text=True, check=True)
    assert done.stdout == "abc"
    assert memory.array(6).tobytes() == b"abcxyz"
    memory.close()


def test_it_grows_and_keeps_its_contents() -> None:
    memory = SharedMemory()
    before = memory.array(4)
    before[:] = 7
    assert memory.array(1 << 20)[:4].tolist() == [7] * 4
    before[0] = 8
    assert memory.array(1)[0] == 8, "an older view is the same memory"
    assert os.fstat(memory.descriptor).st_size == 1 << 20
    memory.close()


def test_an_error_keeps_its_type_and_text() -> None:
    sent = Failure.of(FencedError("too late", advice="none"))
    arrived = Failure.model_validate_json(sent.model_dump_json()).error(by="rank 3")
    assert (type(arrived), str(arrived), arrived.advice) == (FencedError, "rank 3: too late", "none")
    assert str(Failure.of(KeyError("x")).error()) == "KeyError: 'x'"
    assert type(Failure.of(KeyError("x")).error()) is TrainerError
