"""The rows of an epoch, in global batches that are all full and hold no row twice.

accelerate would fill an epoch's last batch with rows of its first, and with how many depends on the world. Here it is
filled with blanks, which carry no label: every row counts once per epoch, in any world.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from finetune_api.v1alpha1 import Task

from ..data.sampler import SeededSampler
from ..data.shards import TokenDataset
from .loss import IGNORED

BLANK = -1
"""Number of the row that is none. It has one token and no label."""


class WholeBatches(Sampler[int]):
    """The order of the epoch, followed by blanks up to the next multiple of the global batch."""

    def __init__(self, order: SeededSampler, *, global_batch: int) -> None:
        self._order = order
        self.blanks = -len(order) % global_batch
        """Blanks in the last batch of every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._order) + self.blanks

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        for _ in range(self.blanks):
            yield BLANK


class RowsAndBlank(Dataset[dict[str, Any]]):
    """A TokenDataset whose row `BLANK` can be asked for, too."""

    def __init__(self, rows: TokenDataset, task: Task) -> None:
        self._rows = rows
        token = rows[0]["input_ids"][:1]
        labels = IGNORED if task is Task.SEQUENCE_CLASSIFICATION else np.full(1, IGNORED, dtype=np.int64)
        self._blank = {"input_ids": token, "labels": labels}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._blank if index == BLANK else self._rows[index]
