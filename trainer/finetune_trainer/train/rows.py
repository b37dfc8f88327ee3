"""The rows of an epoch in full global batches, in which no row occurs twice.

accelerate fills the last batch of an epoch with rows of the first one; their number depends on the world size. Here it
is filled with padding rows, which have no label, so that every row counts once per epoch, for any world size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from finetune_api.trainer_config import BatchPlan
from finetune_api.v1alpha1 import Task

from ..data.sampler import SeededSampler
from ..data.shards import TokenDataset
from ..tasks import TASKS

PADDING_ROW = -1
"""Index of the padding row, which has one token and no label."""


def layout(batch: BatchPlan, *, groups: int) -> list[int]:
    """Return the arrangement of a global batch whose rows are sorted by length, longest first: position -> row.

    The result has `batch.global_size` entries. Micro batches are assigned to the ranks in turn. A micro step has
    `groups` consecutive groups of similar length, and every rank gets an equal part of each, so that no rank has all
    long rows while the others wait for it.
    """
    ranks = batch.global_size // (batch.micro_size * batch.accumulation)
    rows = np.arange(batch.global_size).reshape(batch.accumulation, groups, ranks, batch.micro_size // groups)
    dealt: list[int] = rows.transpose(0, 2, 1, 3).reshape(-1).tolist()
    return dealt


class WholeBatches(Sampler[int]):
    """The order of an epoch, padded to a multiple of the global batch, with each batch arranged by `layout`."""

    def __init__(self, order: SeededSampler, *, layout: Sequence[int]) -> None:
        global_batch = len(layout)
        self._order = order
        self._layout = layout
        self._epoch = 0
        self._offset = 0
        self.padding_rows = -len(order) % global_batch
        """Padding rows in the last batch of every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, counted from 0, that is iterated next."""
        self._epoch = epoch

    def set_offset(self, batches: int) -> None:
        """Shift the data by `batches` global batches: an epoch starts that many batches into its own order."""
        self._offset = batches

    def __len__(self) -> int:
        return len(self._order) + self.padding_rows

    def __iter__(self) -> Iterator[int]:
        size = len(self._layout)
        per_epoch = len(self) // size
        epoch, skipped = divmod(self._epoch * per_epoch + self._offset, per_epoch)
        yield from self._rows_of(epoch)[skipped * size :]
        if skipped:
            yield from self._rows_of(epoch + 1)[: skipped * size]

    def _rows_of(self, epoch: int) -> list[int]:
        self._order.set_epoch(epoch)
        rows = [*self._order, *[PADDING_ROW] * self.padding_rows]
        starts = range(0, len(rows), len(self._layout))
        return [rows[start + position] for start in starts for position in self._layout]


class RowsWithPadding(Dataset[dict[str, Any]]):
    """A TokenDataset with an additional padding row, whose index is PADDING_ROW."""

    def __init__(self, rows: TokenDataset, task: Task) -> None:
        self._rows = rows
        self._padding_row = TASKS[task].padding_row(rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._padding_row if index == PADDING_ROW else self._rows[index]
