"""Settings of the memory allocators of a process: that of the C library, and that of torch on a GPU."""

import ctypes
from collections.abc import Mapping, MutableMapping

MMAP_THRESHOLD_BYTES = 4 * 2**20
"""Larger allocations get pages of their own, which return to the system when they are freed.

glibc raises its threshold to the size of the largest freed block, up to 32 MiB, so that tensors of a few MiB come from
the heap. The inputs of layers that gradient checkpointing keeps then lie between freed blocks, which cannot be returned
and are too small for the next tensors: the forward pass of four layers of SmolLM2 with LoRA, which keeps 40 MiB, raised
the resident memory by 406 MiB, and by 82 MiB with this threshold. Pages that are mapped again are cleared again: a
threshold of 1 MiB slows down small models (MiniLM, 16 rows of 48 tokens: 27 % more CPU time per step), one of 4 MiB
does not.
"""

TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES
"""Free memory at the end of the heap that is kept. The same factor as in glibc, which has 128 KiB otherwise."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

_USER_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables with which a user chooses the behavior of malloc, or another allocator."""

CUDA_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables with the settings of torch's allocator on GPUs; the second one is the older name."""


def return_freed_memory(environ: Mapping[str, str]) -> bool:
    """Let glibc return large freed blocks to the system, unless the user has set how malloc works.

    Returns whether it does. False with other C libraries, such as musl.
    """
    if any(environ.get(name) for name in _USER_SETTINGS):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    options = {_M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES, _M_TRIM_THRESHOLD: TRIM_THRESHOLD_BYTES}
    return all(set_option(name, value) == 1 for name, value in options.items())


def use_expandable_segments(environ: MutableMapping[str, str]) -> None:
    """Let torch's allocator on GPUs grow its segments, unless the user has set it up. Call it before CUDA starts.

    Rows of different width need blocks of different sizes. In fixed segments, a freed block is only used for a request
    that fits into it; an expandable segment maps more pages at its end instead (PyTorch documentation, "CUDA
    semantics", `expandable_segments`).
    """
    if not any(environ.get(name) for name in CUDA_SETTINGS):
        environ[CUDA_SETTINGS[0]] = "expandable_segments:True"
