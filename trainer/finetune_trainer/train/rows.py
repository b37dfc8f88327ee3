"""The rows of an epoch, in global batches that are all full and hold no row twice.

accelerate would fill an epoch's last batch with rows of its first, and with how many depends on the world. Here it is
filled with blanks, which carry no label: every row counts once per epoch, in any world.
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

BLANK = -1
"""Number of the row that is none. It has one token and no label."""


def layout(batch: BatchPlan, *, groups: int) -> list[int]:
    """Where the rows of a global batch, longest first, go: position -> row, for `batch.global_size` positions.

    Micro batches are dealt to the ranks in turn. A micro step takes `groups` consecutive groups of similar length, and
    every rank gets an equal part of each: no rank waits for another one that has all the long rows.
    """
    ranks = batch.global_size // (batch.micro_size * batch.accumulation)
    rows = np.arange(batch.global_size).reshape(batch.accumulation, groups, ranks, batch.micro_size // groups)
    dealt: list[int] = rows.transpose(0, 2, 1, 3).reshape(-1).tolist()
    return dealt


class WholeBatches(Sampler[int]):
    """The order of the epoch, followed by blanks up to the next multiple of the global batch, each batch laid out."""

    def __init__(self, order: SeededSampler, *, layout: Sequence[int]) -> None:
        global_batch = len(layout)
        self._order = order
        self._layout = layout
        self._epoch = 0
        self._offset = 0
        self.blanks = -len(order) % global_batch
        """Blanks in the last batch of every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self._epoch = epoch

    def set_offset(self, batches: int) -> None:
        """Shift the data by `batches` global batches: an epoch starts that many after the start of its own order."""
        self._offset = batches

    def __len__(self) -> int:
        return len(self._order) + self.blanks

    def __iter__(self) -> Iterator[int]:
        size = len(self._layout)
        per_epoch = len(self) // size
        epoch, skipped = divmod(self._epoch * per_epoch + self._offset, per_epoch)
        yield from self._rows_of(epoch)[skipped * size :]
        if skipped:
            yield from self._rows_of(epoch + 1)[: skipped * size]

    def _rows_of(self, epoch: int) -> list[int]:
        self._order.set_epoch(epoch)
        rows = [*self._order, *[BLANK] * self.blanks]
        starts = range(0, len(rows), len(self._layout))
        return [rows[start + position] for start in starts for position in self._layout]


class RowsAndBlank(Dataset[dict[str, Any]]):
    """A TokenDataset whose row `BLANK` can be asked for, too."""

    def __init__(self, rows: TokenDataset, task: Task) -> None:
        self._rows = rows
        self._blank = TASKS[task].padding_row(rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._blank if index == BLANK else self._rows[index]
