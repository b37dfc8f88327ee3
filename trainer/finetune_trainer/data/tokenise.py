"""Examples -> rows of tokens, in batches, with a fast tokenizer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Task

from .formats import Example

BATCH = 1000
"""Examples per call of the tokenizer: enough to keep its threads busy, little enough to show progress."""

Row = tuple[NDArray[np.int64], int | NDArray[np.bool_]]
"""Tokens, and the class id or the flags of the tokens that carry loss."""


@dataclass
class TokeniseCounts:
    """What was cut and what was lost."""

    truncated: int = 0
    without_loss: int = 0
    """Rows in which no token carries loss, most often because the answer begins beyond the maximum length."""
    first_without_loss: str = field(default="")
    """Where the first of them stands."""


def tokenise(
    examples: Iterable[Example],
    tokenizer: Any,
    task: Task,
    labels: Mapping[str, int],
    *,
    max_length: int,
    counts: TokeniseCounts,
) -> Iterator[Row]:
    """Rows in the order of the examples; language-model rows without any loss are left out and counted."""
    remaining = iter(examples)
    encode = _classification if task is Task.SEQUENCE_CLASSIFICATION else _language_model
    while batch := list(islice(remaining, BATCH)):
        yield from encode(batch, tokenizer, labels, max_length, counts)


def _classification(
    batch: list[Example], tokenizer: Any, labels: Mapping[str, int], max_length: int, counts: TokeniseCounts
) -> Iterator[Row]:
    texts = [example.text for example in batch]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False)
    for example, encoding in zip(batch, encoded.encodings, strict=True):
        counts.truncated += bool(encoding.overflowing)
        yield np.asarray(encoding.ids, dtype=np.int64), labels[example.label]


def _language_model(
    batch: list[Example], tokenizer: Any, labels: Mapping[str, int], max_length: int, counts: TokeniseCounts
) -> Iterator[Row]:
    del labels  # the targets are the tokens themselves
    texts = [example.text for example in batch]
    # What begins and ends a text is written in it already; the tokenizer must not add it again.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for example, encoding in zip(batch, encoded.encodings, strict=True):
        loss = loss_flags(encoding.offsets, example.spans)
        tokens = np.asarray(encoding.ids, dtype=np.int64)
        counts.truncated += len(tokens) > max_length
        # The first token is never predicted: a row of which it alone carries loss teaches nothing.
        if not loss[1:max_length].any():
            counts.without_loss += 1
            counts.first_without_loss = counts.first_without_loss or str(example.place)
            continue
        yield tokens[:max_length], loss[:max_length]


def loss_flags(offsets: list[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens carry loss: those that end within a span.

    So a token that begins before a span and reaches into it counts, one that reaches out of it does not, and a token of
    no width (a space that the tokenizer trimmed) goes with the characters before it.
    """
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    flags = np.zeros(len(ends), dtype=np.bool_)
    for start, end in spans:
        flags |= (ends > start) & (ends <= end)
    return flags
