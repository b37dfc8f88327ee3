"""The values that the ranks exchange at the end of every optimizer step, in one all-reduce."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch.distributed as dist

from ..collectives import sum_over_ranks


def _vote(reduction: Callable[[float, int], bool | float]) -> Any:
    """A field of StepVotes. `reduction` turns the sum over the ranks and the number of ranks into the result."""
    return field(metadata={"reduction": reduction})


def _any(total: float, world_size: int) -> bool:
    return total > 0


def _all(total: float, world_size: int) -> bool:
    return total == world_size


def _sum(total: float, world_size: int) -> float:
    return total


@dataclass(frozen=True, kw_only=True)
class StepVotes:
    """Values that differ between ranks at the end of a step; `all_reduce` makes them the same on every rank.

    All reductions are computed from one sum over the ranks in 64 bits, so that a step needs a single all-reduce.
    """

    stop: bool = _vote(_any)
    """A stop was requested."""
    save: bool = _vote(_any)
    """A save is due, by the clock of rank 0."""
    diverged: bool = _vote(_any)
    """Loss or gradient norm is not finite."""
    tokens: float = _vote(_sum)
    """Tokens without padding in this step."""
    part_stored: bool = _vote(_all)
    """This rank's part of the current save is stored."""
    fenced: bool = _vote(_any)
    """A newer attempt has claimed the run."""
    upload_error_changed: bool = _vote(_any)
    """The other ranks do not know this rank's current upload error."""
    too_stale: bool = _vote(_any)
    """The current save takes longer than `spec.checkpoint.uploadTimeout`, by the clock of rank 0."""

    def pack(self) -> list[float]:
        """The votes as numbers, in the order of the fields."""
        return [float(getattr(self, each.name)) for each in fields(self)]

    @classmethod
    def unpack(cls, totals: list[float], *, world_size: int) -> "StepVotes":
        """Reduce the element-wise sums of what all ranks packed."""
        pairs = zip(fields(cls), totals, strict=True)
        return cls(**{each.name: each.metadata["reduction"](total, world_size) for each, total in pairs})

    def all_reduce(self) -> "StepVotes":
        """Return the reduced votes, the same on every rank. Collective: one all-reduce."""
        return self.unpack(sum_over_ranks(self.pack()), world_size=dist.get_world_size())
