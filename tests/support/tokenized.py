"""Rows of encoded examples, one by one, and counts of what was truncated or dropped."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Task
from finetune_trainer.data.formats import Example
from finetune_trainer.data.tokenize import FastTokenizer, batches
from finetune_trainer.tasks import TASKS

Row = tuple[NDArray[np.int32], str | NDArray[np.bool_]]
"""Tokens, and the label's name or the flags of the tokens that carry loss."""


@dataclass
class Tokenized:
    """Totals over all examples."""

    truncated: int = 0
    documents: int = 0
    divided: int = 0
    tokens: int = 0
    dropped_tokens: int = 0
    without_loss: int = 0


def tokenized(examples: list[Example], tokenizer: Any, task: Task, *, max_length: int) -> tuple[list[Row], Tokenized]:
    """Rows as the step `encode` makes them."""
    rows: list[Row] = []
    counts = Tokenized()
    for batch in batches(examples):
        encoded = TASKS[task].encode(batch, FastTokenizer.of(tokenizer), max_length)
        ends = np.cumsum(encoded.row_lengths)
        tokens = np.split(encoded.tokens, ends[:-1]) if len(ends) else []
        loss = None if encoded.loss is None else np.split(encoded.loss, ends[:-1])
        labels = [example.label for example, count in zip(batch, encoded.rows, strict=True) for _ in range(count)]
        rows += [(row, labels[index] if loss is None else loss[index]) for index, row in enumerate(tokens)]
        counts.truncated += int(encoded.truncated.sum())
        counts.documents += int((encoded.rows > 0).sum())
        counts.divided += int((encoded.rows > 1).sum())
        counts.tokens += len(encoded.tokens) + int(encoded.dropped.sum())
        counts.dropped_tokens += int(encoded.dropped.sum())
        counts.without_loss += int((encoded.rows == 0).sum())
    return rows, counts
