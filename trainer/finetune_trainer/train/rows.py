"""The rows of an epoch in full global batches, in which no row occurs twice. A row is an example or a pack.

The last batch of an epoch is filled with padding rows, which have no label, so that every row counts once per epoch,
for any number of ranks. (accelerate fills it with rows of the first batch; their number depends on the ranks.)
"""

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from finetune_api.trainer_config import BatchPlan
from finetune_api.v1alpha1 import Task

from ..data.order import Lengths, Order, epoch_order
from ..data.packs import PackPlan, epoch_packs, histogram_of, plan_packs
from ..data.shards import TokenDataset
from ..tasks import TrainingTask
from ..tasks.base import Split, definition_of, join_rows

PADDING_ROW = -1
"""Index of the padding row, which has one token and no label."""


def layout(batch: BatchPlan, *, groups: int) -> NDArray[np.int64]:
    """Return which rows of a global batch each rank gets. The rows are sorted by length, longest first.

    The result has shape (accumulation, ranks, rows of a micro-batch). A micro step has `groups` consecutive groups of
    similar length, and every rank gets an equal part of each, so that no rank has all long rows while the others wait
    for it.
    """
    ranks = batch.global_size // (batch.micro_size * batch.accumulation)
    rows = np.arange(batch.global_size).reshape(batch.accumulation, groups, ranks, batch.micro_size // groups)
    return rows.transpose(0, 2, 1, 3).reshape(batch.accumulation, ranks, batch.micro_size)


@dataclass(frozen=True)
class GlobalBatches:
    """The order of the training data: a sequence of global batches, numbered from 0 over all epochs."""

    lengths: Lengths
    """Tokens of each row."""
    batch: BatchPlan
    seed: int
    grouped: bool
    """See `epoch_order`."""
    groups: int = 1
    """Parts of a micro-batch that are padded and computed separately."""

    @property
    def rows(self) -> int:
        """Rows of an epoch without padding rows."""
        return len(self.lengths)

    @property
    def per_epoch(self) -> int:
        """Global batches of an epoch."""
        return -(-self.rows // self.batch.global_size)

    def place(self, number: int) -> tuple[int, int]:
        """Return the epoch of a global batch, and its number in the epoch, both from 0."""
        return divmod(number, self.per_epoch)

    def padding_rows(self, number: int) -> int:
        """Return the number of padding rows in a global batch, over all ranks. Only the last of an epoch has any."""
        is_last = self.place(number)[1] == self.per_epoch - 1
        return -self.rows % self.batch.global_size if is_last else 0

    def micro_batches(self, epoch: int, *, rank: int, first: int = 0) -> list[list[Any]]:
        """Return the rows of each micro-batch of a rank in an epoch, from the global batch with the number `first`.

        A row is an index of `RowsWithPadding`.
        """
        order = epoch_order(
            self.lengths, seed=self.seed, epoch=epoch, batch_size=self.batch.global_size, grouped=self.grouped
        )
        return self._dealt(order, rank=rank, first=first)

    def _dealt(self, order: Order, *, rank: int, first: int) -> list[list[int]]:
        """Return the micro-batches of a rank, for the rows of an epoch in their order."""
        rows = np.full(self.per_epoch * self.batch.global_size, PADDING_ROW)
        rows[: len(order)] = order
        places = layout(self.batch, groups=self.groups)[:, rank]
        mine: list[list[int]] = (
            rows.reshape(self.per_epoch, -1)[first:, places].reshape(-1, self.batch.micro_size).tolist()
        )
        return mine


@dataclass(frozen=True)
class PackedBatches(GlobalBatches):
    """Global batches of packs. `batch` counts packs, `lengths` are those of the examples."""

    grouped: bool = field(default=False, init=False)
    capacity: int = field(kw_only=True)
    """Tokens of a pack."""

    @cached_property
    def plan(self) -> PackPlan:
        """The same in every epoch."""
        return plan_packs(histogram_of(self.lengths), self.capacity)

    @property
    def rows(self) -> int:
        """Packs of an epoch."""
        return self.plan.count

    def micro_batches(self, epoch: int, *, rank: int, first: int = 0) -> list[list[Any]]:
        """Return the packs of each micro-batch, as for examples. A pack is an index of `PackedRows`."""
        packs = epoch_packs(self.plan, self.lengths, seed=self.seed, epoch=epoch)
        dealt = self._dealt(np.arange(self.rows), rank=rank, first=first)
        padding = (PADDING_ROW,)
        return [[padding if pack == PADDING_ROW else packs.members(pack) for pack in micro] for micro in dealt]


class RowsWithPadding(Dataset[dict[str, Any]]):
    """A TokenDataset with an additional padding row, whose index is PADDING_ROW."""

    def __init__(self, rows: TokenDataset, task: Task | TrainingTask, *, seed: int = 0) -> None:
        self._stored, self._task, self._seed = rows, definition_of(task), seed
        self._rows: Split = rows
        self._padding_row = self._task.padding_row(rows[0])

    def in_epoch(self, epoch: int) -> "RowsWithPadding":
        """The rows with the targets of an epoch."""
        found = copy(self)
        found._rows = self._task.training_rows(self._stored, seed=self._seed, epoch=epoch)
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._padding_row if index == PADDING_ROW else self._rows[index]


class PackedRows(Dataset[dict[str, Any]]):
    """The examples of a TokenDataset joined to packs. The index of a pack has the numbers of its examples."""

    def __init__(self, rows: TokenDataset, task: Task | TrainingTask, *, seed: int = 0) -> None:
        self._rows = RowsWithPadding(rows, task, seed=seed)

    def in_epoch(self, epoch: int) -> "PackedRows":
        """The packs of rows with the targets of an epoch."""
        found = copy(self)
        found._rows = self._rows.in_epoch(epoch)
        return found

    def __getitem__(self, index: tuple[int, ...]) -> dict[str, Any]:
        return join_rows([self._rows[row] for row in index])
