"""Which rows are held out. Pure: decided by what a row says and by the seed, not by file names or their order.

Every row gets a key, a keyed hash of its content. Rows sorted by key are in a random but reproducible order; the first
of them are held out. So the same rows give the same split however they are spread over files, and when rows are added,
most of the old ones stay in the split they were in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_EVEN_TIES = 0.5


@dataclass(frozen=True)
class Split:
    """Row numbers of each split, in key order."""

    train: Rows
    validation: Rows
    test: Rows
    too_small: tuple[str, ...] = ()
    """Labels with too few rows to be in every split; all their rows are for training."""


def row_keys(identities: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A 64-bit key for each row; equal rows have equal keys."""
    secret = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=secret).digest() for text in identities)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def split_rows(
    keys: NDArray[np.uint64], *, validation: float, test: float, labels: Sequence[str] | None = None
) -> Split:
    """Hold out shares of the rows.

    With `labels` every label is split by itself: a held-out split gets the rounded share of the label's rows, at least
    one. A label with fewer rows than there are splits stays in training.
    """
    order = np.argsort(keys, kind="stable").astype(np.int64)
    if labels is None:
        return Split(*_cut(order, validation, test))
    names, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    splits = 1 + (validation > 0) + (test > 0)
    parts: list[tuple[Rows, Rows, Rows]] = []
    too_small = []
    codes_in_order = codes[order]
    for code, name in enumerate(names):
        rows = order[codes_in_order == code]
        if len(rows) < splits:
            too_small.append(str(name))
            parts.append((rows, rows[:0], rows[:0]))
        else:
            parts.append(_cut(rows, validation, test))
    merged = [_in_key_order(np.concatenate(rows), keys) for rows in zip(*parts, strict=True)]
    return Split(merged[0], merged[1], merged[2], tuple(too_small))


def _cut(rows: Rows, validation: float, test: float) -> tuple[Rows, Rows, Rows]:
    """Train, validation, test; a share above 0 gets at least one row, training the rest (none where rows are few)."""
    test_rows = _share(len(rows), test)
    validation_rows = _share(len(rows), validation)
    held_out = test_rows + validation_rows
    if held_out >= len(rows) > 1:  # rounding up both shares must not eat the training rows
        validation_rows = max(0, len(rows) - 1 - test_rows)
        test_rows = len(rows) - 1 - validation_rows
        held_out = test_rows + validation_rows
    return rows[held_out:], rows[test_rows:held_out], rows[:test_rows]


def _share(rows: int, fraction: float) -> int:
    return min(rows, max(1, int(rows * fraction + _EVEN_TIES))) if fraction > 0 else 0


def _in_key_order(rows: Rows, keys: NDArray[np.uint64]) -> Rows:
    return rows[np.argsort(keys[rows], kind="stable")]
