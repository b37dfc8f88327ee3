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


@dataclass(frozen=True)
class Share:
    """A held-out part of the training files."""

    fraction: float
    """0: no such split."""
    stratify: bool = False
    """Take the fraction of every label's rows, not of all rows together."""


@dataclass(frozen=True)
class Split:
    """Row numbers of each split, in key order."""

    train: Rows
    validation: Rows
    test: Rows
    too_small: tuple[str, ...] = ()
    """Labels with fewer rows than there are splits; a stratified split has none of them."""


def row_keys(identities: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A 64-bit key for each row; equal rows have equal keys."""
    secret = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=secret).digest() for text in identities)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def split_rows(keys: NDArray[np.uint64], labels: Sequence[str], *, validation: Share, test: Share) -> Split:
    """Hold out shares of the rows; `labels` has one label a row, all equal where there are none.

    A split gets its fraction of a group (a label's rows, or all rows), rounded, but at least one row; and every split
    that comes after it, training included, finds one row left. A group with fewer rows than splits is for training.
    """
    # By a table of names: a numpy array of texts gives every row the room of the longest one.
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    codes = np.fromiter((numbers[label] for label in labels), dtype=np.int64, count=len(labels))
    shares = [share for share in (test, validation) if share.fraction > 0]
    splits = 1 + len(shares)
    rows = np.argsort(keys, kind="stable").astype(np.int64)
    parts: list[Rows] = []
    for position, share in enumerate(shares):
        groups = codes if share.stratify else np.zeros(len(keys), dtype=np.int64)
        held_out = _hold_out(rows, groups, share.fraction, splits, reserve=splits - 1 - position)
        parts.append(rows[held_out])
        rows = rows[~held_out]
    empty = rows[:0]
    test_rows = parts.pop(0) if test.fraction > 0 else empty
    validation_rows = parts.pop(0) if validation.fraction > 0 else empty
    sizes = np.bincount(codes, minlength=len(names))
    is_stratified = any(share.stratify for share in shares)
    too_small = tuple(name for name, size in zip(names, sizes, strict=True) if size < splits) if is_stratified else ()
    return Split(rows, validation_rows, test_rows, too_small)


def _hold_out(rows: Rows, groups: Rows, fraction: float, splits: int, *, reserve: int) -> NDArray[np.bool_]:
    """Which of `rows` (in key order) to take: the first of each group."""
    sizes = np.bincount(groups)
    here = groups[rows]
    available = np.bincount(here, minlength=len(sizes))
    wanted = np.maximum(1, np.floor(sizes * fraction + 0.5).astype(np.int64))
    taken = np.where(sizes < splits, 0, np.clip(wanted, 0, np.maximum(0, available - reserve)))
    by_group = np.argsort(here, kind="stable")
    starts = np.cumsum(available) - available
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_group] = np.arange(len(rows)) - starts[here[by_group]]
    return np.asarray(rank < taken[here])
