"""Collates rows of a TokenDataset into one padded batch."""

from collections.abc import Sequence
from typing import Any

import torch

from finetune_api.v1alpha1 import Task

from ..tasks import TrainingTask
from ..tasks.base import definition_of


class Collator:
    """Calls `collate` of a task with the tokenizer's pad id."""

    def __init__(self, pad_token_id: int, task: Task | TrainingTask, pad_to_multiple_of: int | None = None) -> None:
        self._pad_token_id = pad_token_id
        self._task = definition_of(task)
        self.multiple = pad_to_multiple_of or 1
        """Widths are multiples of it."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """See `TrainingTask.collate`."""
        return self._task.collate(rows, self._pad_token_id, multiple=self.multiple)
