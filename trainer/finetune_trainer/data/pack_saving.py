"""Estimates how much of the computation `spec.training.batching` Packed would save, at the same number of steps. Pure.

A packed row replaces padding, but its attention is computed over the whole row. The estimate counts both for the order
that the training would have otherwise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.trainer_config import BatchPlan

from .order import Lengths, epoch_order

_LARGEST_CHANGE = 0.25
"""A batch of packs may have so much more or fewer examples per step, as a share."""


@dataclass(frozen=True)
class PackSaving:
    """What packs would save."""

    share: float
    """Of the computation; negative if packs cost more."""
    global_batch: int
    """Packs per step with which the training has about the same number of steps."""


@dataclass(frozen=True)
class Costs:
    """What a pass over rows costs, in tokens."""

    fixed: float
    """Of a pass, see `order.pass_tokens`."""
    attention: float
    """Of one token that attends to one token: 2 * layers * attention size / parameters. A token takes 2 operations per
    parameter, and in each layer 4 operations per value of the queries for each token of its row."""

    def rows(self, widths: NDArray[np.int64], sizes: NDArray[np.float64]) -> float:
        """Cost of passes with `sizes` rows of `widths` tokens; both have shape (passes,)."""
        return float((sizes * widths * (1.0 + self.attention * widths)).sum()) + self.fixed * len(widths)


def pack_saving(
    lengths: Lengths, batch: BatchPlan, *, packs: int, capacity: int, groups: int | None, seed: int, costs: Costs
) -> PackSaving | None:
    """Return what `packs` rows of `capacity` tokens would save; None: no batch of packs has about as many examples.

    `groups` are those of `order.cheapest_grouping`; None: the rows are in random order. A batch of packs must be
    divisible among the processes.
    """
    processes = batch.global_size // (batch.accumulation * batch.micro_size)
    per_step = batch.global_size * packs / len(lengths)
    size = processes * max(1, round(per_step / processes))
    if abs(size / per_step - 1.0) > _LARGEST_CHANGE:
        return None
    grouped = groups is not None
    ordered = lengths[epoch_order(lengths, seed=seed, epoch=0, batch_size=batch.global_size, grouped=grouped)].astype(
        np.int64
    )
    together = batch.global_size // batch.accumulation // (groups or 1)
    starts = np.arange(0, len(ordered), together)
    widths = np.maximum.reduceat(ordered, starts)
    # The processes share a pass.
    sizes = np.diff(np.append(starts, len(ordered))) / processes
    now = costs.rows(widths, sizes)
    passes = min(-(-packs // processes), -(-len(lengths) // batch.global_size) * batch.accumulation)
    packed = costs.rows(np.full(passes, capacity), np.full(passes, packs / processes / passes))
    return PackSaving(1.0 - packed / now, size)
