"""Collectives that gloo does slowly, made of those that it does fast.

gloo gathers a whole model's weights, as ZeRO does in every step, several times slower than by one broadcast a
rank, which moves the same bytes: it stages everything in a buffer of its own. Measured by
`benchmarks/gather.py`. The result is the same to the last bit: bytes are moved, nothing is computed.
"""

from typing import Any

import torch
import torch.distributed as dist


class Works:
    """Several collectives under way, waited for as one."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        """Until all of them are done."""
        for work in self._works:
            work.wait()

    def is_completed(self) -> bool:
        """Whether all of them are done."""
        return all(work.is_completed() for work in self._works)


def all_gather_by_broadcast(
    output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
) -> Works | None:
    """As torch's `all_gather_into_tensor`: output (W * n) <- every rank's input (n), in the order of the ranks."""
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    pieces = output_tensor.view(-1).chunk(len(ranks))
    own = pieces[ranks.index(dist.get_rank())]
    if own.data_ptr() != input_tensor.data_ptr():
        own.copy_(input_tensor.view(-1))
    broadcasts = (
        dist.broadcast(piece, src=rank, group=group, async_op=True) for rank, piece in zip(ranks, pieces, strict=True)
    )
    works = Works(list(broadcasts))
    if async_op:
        return works
    works.wait()
    return None


def use_fast_collectives() -> None:
    """Let DeepSpeed gather by broadcast; its process group has to be gloo's, and started."""
    from deepspeed.comm import comm

    comm.cdb.all_gather_function = all_gather_by_broadcast
