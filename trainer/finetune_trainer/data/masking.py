"""Masks tokens of the rows of a masked language model. Pure.

The masks are a function of the seed, the epoch and the number of the row, so they do not depend on workers,
micro-batches, other rows or restarts. Those of held-out rows depend on the number of the row only: every model and
every run on the same dataset is measured on the same tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks import IGNORED
from ..tasks.base import StoredSplit
from .order import random_order

PERCENT_CHOSEN = 15
"""Share of the tokens of a row that are to be predicted, as in Devlin et al. 2019; at least one."""
_TENTHS_MASKED, _TENTHS_REPLACED = 8, 1
"""Of the chosen tokens, 80 % become the mask token, 10 % a random token, and 10 % stay as they are."""
_TRAINING, _HELD_OUT = 0, 1
"""Last word of the counter of the random bits."""


class MaskedRows:
    """The rows of a split with tokens that are to be predicted.

    `input_ids` have the replaced tokens; `labels` have the original ids of the chosen tokens, and IGNORED elsewhere.
    """

    def __init__(self, rows: StoredSplit, key: tuple[int, int], purpose: int) -> None:
        assert rows.masking is not None, "the dataset was prepared for the task"
        self._rows, self._masking, self._key, self._purpose = rows, rows.masking, key, purpose
        self._ordinary = np.setdiff1d(np.arange(self._masking.vocabulary), self._masking.special_tokens)
        self.lengths = rows.lengths

    @classmethod
    def in_epoch(cls, rows: StoredSplit, seed: int, epoch: int) -> "MaskedRows":
        """The masks of an epoch."""
        return cls(rows, (seed, epoch), _TRAINING)

    @classmethod
    def held_out(cls, rows: StoredSplit) -> "MaskedRows":
        """The masks of validation and test, the same for every seed."""
        return cls(rows, (0, 0), _HELD_OUT)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        ids, labels = row["input_ids"].copy(), np.full(len(row["labels"]), IGNORED, dtype=np.int64)
        candidates = np.flatnonzero(row["labels"] != IGNORED)
        bits = np.random.Philox(key=list(self._key), counter=[0, 0, index + 1, self._purpose])
        chosen = candidates[random_order(bits, len(candidates))[: count_chosen(len(candidates))]]
        labels[chosen] = ids[chosen]
        ids[chosen] = self._replaced(ids[chosen], bits)
        return {"input_ids": ids, "labels": labels}

    def documents(self) -> NDArray[np.integer[Any]]:
        """As in the dataset."""
        return self._rows.documents()

    def units(self) -> NDArray[np.int64] | None:
        """None: losses are divided by the tokens that are predicted."""
        return None

    def _replaced(self, ids: NDArray[np.int64], bits: np.random.Philox) -> NDArray[np.int64]:
        tenths = _random(bits, len(ids), 10)
        drawn = self._ordinary[_random(bits, len(ids), len(self._ordinary))]
        replaced = np.where(tenths < _TENTHS_MASKED + _TENTHS_REPLACED, drawn, ids)
        return np.where(tenths < _TENTHS_MASKED, self._masking.mask_token, replaced)


def count_chosen(candidates: int) -> int:
    """How many of so many tokens are to be predicted."""
    return min(candidates, max(1, (PERCENT_CHOSEN * candidates + 50) // 100))


def _random(bits: np.random.Philox, count: int, below: int) -> NDArray[np.int64]:
    """Integers from 0 to `below - 1`. The bias of the remainder is less than `below` / 2**64."""
    return (np.asarray(bits.random_raw(count), dtype=np.uint64) % np.uint64(below)).astype(np.int64)
