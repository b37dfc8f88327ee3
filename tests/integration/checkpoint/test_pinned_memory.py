"""Snapshots of a GPU are copied to page-locked memory."""

import pytest
import torch

from finetune_trainer.checkpoint.engine.pinning import PinnedMemory
from finetune_trainer.checkpoint.upload.shared_memory import SharedMemory

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def is_pinned(memory: SharedMemory, size: int) -> bool:
    return torch.from_numpy(memory.array(size)).is_pinned()


@needs_gpu
def test_memory_is_locked_while_it_is_held_even_if_it_grows() -> None:
    torch.cuda.init()
    memory, pinned = SharedMemory(), PinnedMemory()
    seen = []
    for size in (4096, 1024, 1 << 20):
        pinned.hold(memory.array(size))
        seen.append(is_pinned(memory, size))
    pinned.release()
    assert (seen, is_pinned(memory, 4096)) == ([True] * 3, False)


@needs_gpu
def test_a_gpu_copies_the_correct_bytes_into_it() -> None:
    memory, pinned = SharedMemory(), PinnedMemory()
    values = torch.arange(1 << 18, dtype=torch.float32, device="cuda")
    array = memory.array(1 << 20)
    pinned.hold(array)
    torch.from_numpy(array.view("float32")).copy_(values)
    pinned.release()
    assert torch.equal(torch.from_numpy(array.view("float32")), values.cpu())


def test_without_a_gpu_in_use_nothing_is_locked() -> None:
    memory, pinned = SharedMemory(), PinnedMemory()
    if torch.cuda.is_initialized():
        pytest.skip("this process uses a GPU")
    pinned.hold(memory.array(4096))
    assert pinned._array is None
    pinned.release()
