"""Compares all rows by features: rows that have a feature in common are shown to a step, which removes some of them.

A feature is a 64-bit key, for example a band of a MinHash signature or a run of words. The files of a run have the
features of its rows, sorted, so that a range of them is read from all runs at a time. Memory holds one range of at most
about a million features, and two bytes per row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import FeatureFiles

_RANGE = 1 << 20
"""Features per range: 28 MiB with their rows."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureGroup:
    """Rows that have one feature in common."""

    rows: Rows
    """Numbers of the rows: those of held-out splits first, then those of training, each in the order of the files."""
    held_out: int
    """How many of them are held out."""
    evidence: Callable[[int], NDArray[np.uint32]]
    """Row -> its evidence, by which the step decides whether the rows are as similar as the feature suggests."""
    common: NDArray[np.uint64]
    """Sorted features of too many held-out rows, which the step must ignore; see `Comparison`."""


ApplyToFeatures = Callable[[FeatureGroup], Sequence[int]]
"""Which training rows of a group to remove."""


class Comparison:
    """The features of a step, and the rows that they belong to."""

    def __init__(
        self, files: Sequence[FeatureFiles], is_used: NDArray[np.bool_], in_training: NDArray[np.bool_]
    ) -> None:
        """`is_used` and `in_training` have a value for each row of all files, in the order of the files: whether it is
        compared, and whether it is a training row."""
        self._keys, self._rows, self._evidence, self._ends = zip(*(each.open() for each in files), strict=True)
        self._first = np.cumsum([0, *(len(ends) - 1 for ends in self._ends)])
        self._is_used = is_used.copy()
        self._in_training = in_training
        self._ranges = 1 + sum(map(len, self._keys)) // _RANGE

    def removed(self, apply: ApplyToFeatures, *, needs_held_out: bool, most_held_out: int | None) -> NDArray[np.bool_]:
        """Which rows the step removes, for each row of all files.

        `needs_held_out`: only groups with a held-out row are compared. `most_held_out`: features that more held-out
        rows have are common text, and are ignored.
        """
        before = self._is_used.copy()
        common = np.zeros(0, dtype=np.uint64)
        if most_held_out is not None:
            found = [keys[starts[held_out > most_held_out]] for keys, _, starts, _, held_out in self._groups()]
            common = np.concatenate([common, *found])
        for keys, rows, starts, ends, held_out in self._groups():
            chosen = (ends - starts > 1) & self._in_training[rows[ends - 1]]
            if needs_held_out:
                chosen &= held_out > 0
            chosen &= ~np.isin(keys[starts], common)
            for start, end in zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True):
                self._compare(rows[start:end], apply, common)
        return before & ~self._is_used

    def _compare(self, rows: Rows, apply: ApplyToFeatures, common: NDArray[np.uint64]) -> None:
        rows = rows[self._is_used[rows]]  # without those that were removed by an earlier group
        held_out = int((~self._in_training[rows]).sum())
        if len(rows) > 1 and held_out < len(rows):
            removed = apply(FeatureGroup(rows, held_out, self._evidence_of, common))
            self._is_used[list(removed)] = False

    def _groups(self) -> Iterator[tuple[NDArray[np.uint64], Rows, Rows, Rows, Rows]]:
        """For each range: keys and rows, sorted, and of each group of equal keys the start, the end, and the number of
        held-out rows."""
        for number in range(self._ranges):
            keys, rows = self._range(number)
            if not len(keys):
                continue
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            held_out = np.add.reduceat(~self._in_training[rows], starts, dtype=np.int64)
            yield keys, rows, starts, np.append(starts[1:], len(keys)), held_out

    def _range(self, number: int) -> tuple[NDArray[np.uint64], Rows]:
        low, high = ((place << 64) // self._ranges for place in (number, number + 1))
        keys, rows = [], []
        for own_keys, own_rows, first in zip(self._keys, self._rows, self._first[:-1], strict=True):
            begin = int(own_keys.searchsorted(np.uint64(low)))
            end = len(own_keys) if number + 1 == self._ranges else int(own_keys.searchsorted(np.uint64(high)))
            keys.append(np.array(own_keys[begin:end]))
            rows.append(own_rows[begin:end].astype(np.int64) + first)
        all_keys, all_rows = np.concatenate(keys), np.concatenate(rows)
        used = self._is_used[all_rows]
        all_keys, all_rows = all_keys[used], all_rows[used]
        order = np.lexsort((all_rows, self._in_training[all_rows], all_keys))
        return all_keys[order], all_rows[order]

    def _evidence_of(self, row: int) -> NDArray[np.uint32]:
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - int(self._first[file])
        ends: Any = self._ends[file]
        return np.array(self._evidence[file][ends[place] : ends[place + 1]])
