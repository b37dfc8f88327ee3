"""Examples -> rows of tokens, in batches, with a fast tokenizer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Task

from ..tasks import TASKS
from .formats import Example

BATCH = 1000
"""Examples per call of the tokenizer: enough to keep its threads busy, little enough to show progress."""

BATCH_CHARACTERS = 2**22
"""Characters per call, which bounds the memory for the encodings of long texts: about 100 bytes a token."""

Row = tuple[NDArray[np.int64], int | NDArray[np.bool_]]
"""Tokens, and the class id or the flags of the tokens that carry loss."""


@dataclass
class TokeniseCounts:
    """What one split was made into, and what was lost on the way."""

    truncated: int = 0
    """Rows that were cut to the maximum length."""
    documents: int = 0
    """Examples that gave at least one row so far: the number of the current one, from 1."""
    divided: int = 0
    """Texts that were divided into several rows."""
    tokens: int = 0
    """Tokens of all examples before anything was cut or left out."""
    dropped_tokens: int = 0
    """How many of them are in no row."""
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
    """Rows in the order of the examples; language-model rows without any loss are left out and counted.

    An example is cut to `max_length` tokens, unless it is divisible: then it gives as many rows as it needs.
    """
    encode = TASKS[task].encode
    for batch in _batches(examples):
        yield from encode(batch, tokenizer, labels, max_length, counts)


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """At most BATCH examples and, unless one alone is longer, BATCH_CHARACTERS characters at a time."""
    batch: list[Example] = []
    characters = 0
    for example in examples:
        if batch and (len(batch) == BATCH or characters + len(example.text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(example)
        characters += len(example.text)
    if batch:
        yield batch


def classification_rows(
    batch: list[Example], tokenizer: Any, labels: Mapping[str, int], max_length: int, counts: TokeniseCounts
) -> Iterator[Row]:
    """Rows of texts with one label each, cut to `max_length`, with the tokenizer's special tokens."""
    texts = [example.text for example in batch]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False)
    for example, encoding in zip(batch, encoded.encodings, strict=True):
        # Every overflowing piece has special tokens of its own, which are not part of the text.
        dropped = sum(len(piece.ids) - sum(piece.special_tokens_mask) for piece in encoding.overflowing)
        counts.truncated += bool(encoding.overflowing)
        counts.dropped_tokens += dropped
        counts.tokens += len(encoding.ids) + dropped
        counts.documents += 1
        yield np.asarray(encoding.ids, dtype=np.int64), labels[example.label]


def language_model_rows(
    batch: list[Example], tokenizer: Any, labels: Mapping[str, int], max_length: int, counts: TokeniseCounts
) -> Iterator[Row]:
    """Rows of texts with the flags of the tokens that carry loss; those without any are left out and counted."""
    del labels  # the targets are the tokens themselves
    texts = [example.text for example in batch]
    # What begins and ends a text is written in it already; the tokenizer must not add it again.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for example, encoding in zip(batch, encoded.encodings, strict=True):
        loss = loss_flags(encoding.offsets, example.spans)
        tokens = np.asarray(encoding.ids, dtype=np.int64)
        counts.tokens += len(tokens)
        counts.truncated += len(tokens) > max_length and not example.divisible
        parts = chunks(len(tokens), max_length) if example.divisible else [(0, min(len(tokens), max_length))]
        # The first token is never predicted: a row of which it alone carries loss teaches nothing.
        if not any(loss[begin + 1 : end].any() for begin, end in parts):
            counts.without_loss += 1
            counts.dropped_tokens += len(tokens)
            counts.first_without_loss = counts.first_without_loss or str(example.place)
            continue
        counts.documents += 1
        counts.divided += len(parts) > 1
        counts.dropped_tokens += len(tokens) - parts[-1][1]
        for begin, end in parts:
            yield tokens[begin:end], loss[begin:end]


def chunks(length: int, max_length: int) -> list[tuple[int, int]]:
    """Begin and end of the ceil(length / max_length) rows of a text; the last one may be shorter.

    The first token of a row is never predicted, so that a last row of one token would teach nothing: it gets another
    one from the row before it, if that keeps two.
    """
    starts = list(range(0, length, max_length))
    if len(starts) > 1 and length - starts[-1] == 1 and max_length > 2:
        starts[-1] -= 1
    return list(pairwise([*starts, length]))


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
