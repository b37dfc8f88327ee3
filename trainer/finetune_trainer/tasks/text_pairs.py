"""Pairs of texts with and without the same label, for contrastive training.

Every text is paired with one other in each epoch, as a function of the seed, the epoch and the number of the text. As
in Tunstall et al. 2022 (arXiv 2209.11055, section 3.2), half of the pairs have the same label, and the loss is the
squared difference of the cosine similarity from 1 for the same label, and from 0 for another one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .base import IGNORED, Batch, Split, StoredSplit
from .sequence_classification import SequenceClassification

OTHER = "other_ids"
"""Tokens of the second text of a row."""
_PAIRS = 2
"""Last word of the counter of the random bits. The order of an epoch has 0, with the same key."""


class TextPairs(SequenceClassification):
    """`logits` are embeddings (2 * rows, width), those of the two texts of a row one after the other. `labels` (rows,)
    are 1 for the same label, 0 for another one."""

    texts_per_row = 2
    padding_tokens = 2

    def training_rows(self, rows: StoredSplit, *, seed: int, epoch: int) -> Split:
        """The pairs of an epoch."""
        return PairedRows(rows, seed=seed, epoch=epoch)

    def collate(
        self, rows: Sequence[Mapping[str, Any]], pad_token_id: int, *, multiple: int = 1
    ) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` have shape (2 * rows, width), so that a part of the batch has whole pairs;
        `labels` (rows,)."""
        texts = [{"input_ids": row[name], "labels": row["labels"]} for row in rows for name in ("input_ids", OTHER)]
        batch = super().collate(texts, pad_token_id, multiple=multiple)
        return batch | {"labels": batch["labels"][::2]}

    def padding_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Two texts of one token."""
        padding = super().padding_row(row)
        return padding | {OTHER: padding["input_ids"]}

    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Squared differences, summed over the pairs, in 32 bit."""
        assert not smoothing, "spec.training.labelSmoothing is refused with pairs"
        first, second = logits.float().reshape(-1, 2, logits.shape[-1]).unbind(1)
        labels = batch["labels"]
        differences = functional.cosine_similarity(first, second) - labels
        return differences[labels != IGNORED].square().sum()


class PairedRows:
    """The rows of a split as pairs: `input_ids`, `other_ids`, and `labels`, which is 1 for the same label and 0 for
    another one.

    A text is paired with one of the same label in every second epoch, and half of the texts in each. A text that is the
    only one with its label is always paired with one of another label.
    """

    def __init__(self, rows: Split, *, seed: int, epoch: int) -> None:
        self._rows = rows
        self.lengths = rows.lengths
        self._others, self._is_same = paired(
            np.array([rows[index]["labels"] for index in range(len(rows))]), seed=seed, epoch=epoch
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self._rows[index]["input_ids"],
            OTHER: self._rows[int(self._others[index])]["input_ids"],
            "labels": int(self._is_same[index]),
        }


def paired(
    labels: npt.NDArray[np.integer[Any]], *, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the number of the other text of each row, and whether both have the same label, each of shape (rows,).

    There must be two labels. The bias of the remainder is less than rows / 2**64.
    """
    count = len(labels)
    order = np.argsort(labels, kind="stable")
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    start, size = starts[group], sizes[group]
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _PAIRS])
    random = np.asarray(bits.random_raw(count), dtype=np.uint64)
    same = start + (place - start + 1 + _below(random, np.maximum(size - 1, 1))) % size
    other = (start + size + _below(random, count - size)) % count
    is_same = ((np.arange(count) + epoch) % 2 == 0) & (size > 1)
    return order[np.where(is_same, same, other)], is_same


def _below(random: npt.NDArray[np.uint64], limits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (random % limits.astype(np.uint64)).astype(np.int64)
