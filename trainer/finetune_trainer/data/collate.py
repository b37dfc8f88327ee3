"""Rows of a TokenDataset -> one padded batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.v1alpha1 import Task

from ..tasks import TASKS


class Collator:
    """Pads on the right to the longest row of the batch, or up to the next multiple of `pad_to_multiple_of`."""

    def __init__(self, pad_token_id: int, task: Task, pad_to_multiple_of: int | None = None) -> None:
        self._pad_token_id = pad_token_id
        self._task = TASKS[task]
        self._multiple = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, L), int64; `labels` as the task's `collate_labels` gives them."""
        width = -(-max(len(row["input_ids"]) for row in rows) // self._multiple) * self._multiple
        input_ids = np.full((len(rows), width), self._pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row["input_ids"])] = row["input_ids"]
            attention_mask[index, : len(row["input_ids"])] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(self._task.collate_labels(rows, width)),
        }
