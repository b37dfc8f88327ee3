"""Which rows are held out. Pure: decided by the content of a row and the seed, not by file names or file order.

Every row gets a key, a keyed hash of its content. Rows sorted by key are in a random but reproducible order, and the
first of them are held out. The same rows therefore give the same split however they are distributed over files, and
when rows are added, most existing rows stay in their split.

The only global information is the number of rows per label. Rows are then assigned in key order, in parts, so that
memory use does not depend on their number.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
"""The label id of each row, shape (rows,); all zero if there are no labels."""

Counts = NDArray[np.int64]
"""Numbers of rows."""

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Share:
    """A held-out part of the training files."""

    fraction: float
    """0: no such split."""
    stratify: bool = False
    """Take the fraction of every label's rows, not of all rows together."""


class Splitter:
    """Assigns rows to the splits, in key order; keeps count of the assigned rows.

    A split gets its fraction of a group (a label's rows, or all rows), rounded, but at least one row, and leaves at
    least one row for every later split, including training. A group with fewer rows than splits is used for training.
    """

    def __init__(
        self, sizes: NDArray[np.int64], rows: Callable[[], Iterable[Codes]], *, validation: Share, test: Share
    ) -> None:
        """`sizes` is the number of rows per label, shape (labels,); `rows` yields all rows in key order, in parts."""
        shares = [(TEST, test), (VALIDATION, validation)]
        shares = [(split, share) for split, share in shares if share.fraction > 0]
        self._splits = 1 + len(shares)
        self._sizes = sizes
        self._is_stratified = any(share.stratify for _, share in shares)
        self._stages: list[_Stage] = []
        available = sizes
        for position, (split, share) in enumerate(shares):
            stage = _Stage(split, share, sizes, available, splits=self._splits, reserve=len(shares) - position)
            if position + 1 < len(shares):
                available = sizes - self._taken_by_label(stage, rows)
            self._stages.append(stage)

    @staticmethod
    def _taken_by_label(stage: "_Stage", rows: Callable[[], Iterable[Codes]]) -> NDArray[np.int64]:
        if stage.stratify:
            return stage.wanted
        found = np.zeros(len(stage.sizes), dtype=np.int64)
        first = int(stage.wanted.sum())
        for codes in rows():
            found += np.bincount(codes[:first], minlength=len(found))
            first -= min(first, len(codes))
            if not first:
                break
        return found

    def assign(self, codes: Codes) -> NDArray[np.int8]:
        """TRAIN, VALIDATION or TEST for each of the next rows in key order."""
        found = np.full(len(codes), TRAIN, dtype=np.int8)
        left = np.arange(len(codes))
        for stage in self._stages:
            is_taken = stage.take(codes[left])
            found[left[is_taken]] = stage.split
            left = left[~is_taken]
        return found

    @property
    def counts(self) -> dict[int, int]:
        """Split -> total number of its rows."""
        held_out = {stage.split: int(stage.wanted.sum()) for stage in self._stages}
        return {VALIDATION: 0, TEST: 0, TRAIN: int(self._sizes.sum()) - sum(held_out.values())} | held_out

    @property
    def too_small(self) -> list[int]:
        """Labels with fewer rows than there are splits; a stratified held-out split has none of these rows."""
        return np.flatnonzero((self._sizes < self._splits) & (self._sizes > 0)).tolist() if self._is_stratified else []


def split_groups(sizes: Counts, *, validation: Share, test: Share) -> NDArray[np.int8]:
    """TRAIN, VALIDATION or TEST for each group of rows; `sizes` has the rows of each, in key order.

    A split gets the first groups that fit into its fraction of the rows, or the smallest group if none does. There must
    be at least as many groups as splits.
    """
    found = np.full(len(sizes), TRAIN, dtype=np.int8)
    shares = [
        (split, share.fraction) for split, share in ((TEST, test), (VALIDATION, validation)) if share.fraction > 0
    ]
    total = int(sizes.sum())
    for position, (split, fraction) in enumerate(shares):
        wanted = max(1, int(total * fraction + 0.5))
        left = np.flatnonzero(found == TRAIN)
        most = len(left) - (len(shares) - position)
        chosen: list[int] = []
        for group in left.tolist():
            size = int(sizes[group])
            if len(chosen) < most and size <= wanted:
                chosen.append(group)
                wanted -= size
            if not wanted:
                break
        found[chosen or [int(left[np.argmin(sizes[left])])]] = split
    return found


class _Stage:
    """One held-out split: the first rows of each group."""

    def __init__(
        self,
        split: int,
        share: Share,
        sizes: NDArray[np.int64],
        available: NDArray[np.int64],
        *,
        splits: int,
        reserve: int,
    ) -> None:
        self.split = split
        self.stratify = share.stratify
        self.sizes = sizes
        if not share.stratify:
            sizes, available = sizes.sum(keepdims=True), available.sum(keepdims=True)
        most = np.maximum(1, np.floor(sizes * share.fraction + 0.5).astype(np.int64))
        self.wanted = np.where(sizes < splits, 0, np.clip(most, 0, np.maximum(0, available - reserve)))
        """Number of rows that are taken from each group."""
        self._seen = np.zeros(len(sizes), dtype=np.int64)

    def take(self, codes: Codes) -> NDArray[np.bool_]:
        """Which of the next rows to take."""
        groups = codes if self.stratify else np.zeros(len(codes), dtype=np.int64)
        taken = np.asarray(ranks_in_groups(groups, self._seen) < self.wanted[groups])
        self._seen += np.bincount(groups, minlength=len(self._seen))
        return taken


def ranks_in_groups(groups: Codes, seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each row within its group, shape (rows,); `seen` is the number of earlier rows of each group."""
    counts = np.bincount(groups, minlength=len(seen))
    by_group = np.argsort(groups, kind="stable")
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[by_group] = np.arange(len(groups)) - starts[groups[by_group]]
    return np.asarray(seen[groups] + ranks)


def row_keys(identities: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A 64-bit key for each row; equal rows have equal keys."""
    secret = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=secret).digest() for text in identities)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
