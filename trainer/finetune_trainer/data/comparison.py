"""Compares all rows by features: rows that have a feature in common are shown to a step, which removes some of them.

A feature is a 64-bit key, for example a band of a MinHash signature or a run of words. The file of a run has the
features of its rows, sorted, so that a range of them is read from all runs at a time. Memory holds one range of about
a million features or one part of the evidence, and 8 bytes per range and run; steps add some bytes per row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .runs import FeatureFile

_RANGE = 1 << 20
"""Features per range: about 90 MiB with their rows while they are sorted."""
_PART = 1 << 19
"""Values of evidence per part."""

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


ApplyToGroup = Callable[[FeatureGroup], Sequence[int]]
"""Which training rows of a group to remove."""


@dataclass(frozen=True)
class Groups:
    """The features of one range, and the rows that have each."""

    keys: NDArray[np.uint64]
    """Sorted; a feature occurs once for each row that has it."""
    rows: Rows
    """The row of each key. Among equal keys, the order is that of `FeatureGroup.rows`."""
    starts: Rows
    """(groups,): the place in `keys` of the first of each group of equal keys."""
    ends: Rows
    """(groups,): the place after the last."""
    held_out: Rows
    """(groups,): how many of the rows are held out."""


@dataclass(frozen=True)
class EvidencePart:
    """The evidence of some rows."""

    rows: Rows
    ends: Rows
    """(rows + 1,): the evidence of row `i` of the part is from `ends[i]` to `ends[i + 1]`."""
    evidence: NDArray[np.uint32]


class Comparison:
    """The features of a step, and the rows that they belong to."""

    def __init__(
        self, files: Sequence[FeatureFile], is_used: NDArray[np.bool_], in_training: NDArray[np.bool_]
    ) -> None:
        """`is_used` and `in_training` have a value for each row of all files, in the order of the files: whether it is
        compared, and whether it is a training row."""
        self.is_used = is_used
        self.in_training = in_training
        self._files = files
        self._first = np.cumsum([0, *(file.rows for file in files)])

    def removed(self, apply: ApplyToGroup) -> NDArray[np.bool_]:
        """Which rows the function removes, for each row of all files. A row that it removes from a group is in none of
        the groups that follow."""
        left = self.is_used.copy()
        for found in self.groups(left):
            chosen = (found.ends - found.starts > 1) & self.in_training[found.rows[found.ends - 1]]
            for start, end in zip(found.starts[chosen].tolist(), found.ends[chosen].tolist(), strict=True):
                rows = found.rows[start:end]
                rows = rows[left[rows]]
                held_out = int((~self.in_training[rows]).sum())
                if len(rows) > 1 and held_out < len(rows):
                    left[list(apply(FeatureGroup(rows, held_out, self.evidence)))] = False
        return self.is_used & ~left

    def groups(self, chosen: NDArray[np.bool_], low: int = 0, high: int = 1 << 64) -> Iterator[Groups]:
        """The features from `low` to `high` of the chosen rows, one range at a time. The caller may choose fewer rows,
        in place, while it uses the ranges."""
        total = sum(int(end - begin) for begin, end in (file.places([low, high]) for file in self._files))
        count = 1 + total // _RANGE
        edges = [low + (high - low) * number // count for number in range(count + 1)]
        places = [file.places(edges) for file in self._files]
        for number in range(count):
            keys, rows = [], []
            for file, own_places, first in zip(self._files, places, self._first[:-1].tolist(), strict=True):
                own_keys, own_rows = file.read(int(own_places[number]), int(own_places[number + 1]))
                numbers = own_rows.astype(np.int64) + first
                is_chosen = chosen[numbers]
                keys.append(own_keys[is_chosen])
                rows.append(numbers[is_chosen])
            if any(map(len, keys)):
                yield self._grouped(np.concatenate(keys), np.concatenate(rows))

    def _grouped(self, keys: NDArray[np.uint64], rows: Rows) -> Groups:
        # Equal keys are in the order of the rows, and the sort is stable.
        order = np.lexsort((self.in_training[rows], keys))
        keys, rows = keys[order], rows[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        held_out = np.add.reduceat(~self.in_training[rows], starts, dtype=np.int64)
        return Groups(keys, rows, starts, np.append(starts[1:], len(keys)), held_out)

    def parts(self, chosen: NDArray[np.bool_]) -> Iterator[EvidencePart]:
        """The evidence of the chosen rows, in the order of the files."""
        for file, first in zip(self._files, self._first[:-1].tolist(), strict=True):
            rows = np.flatnonzero(chosen[first : first + file.rows])
            if not len(rows):
                continue
            file_ends = file.ends()
            sizes = np.diff(file_ends)
            numbers = np.cumsum(sizes[rows]) // _PART
            for part in np.split(rows, 1 + np.flatnonzero(np.diff(numbers))):
                begin, end = int(part[0]), int(part[-1]) + 1
                evidence = file.values(int(file_ends[begin]), int(file_ends[end]))
                is_chosen = np.repeat(chosen[first + begin : first + end], sizes[begin:end])
                ends = np.concatenate([[0], np.cumsum(sizes[part])]).astype(np.int64)
                yield EvidencePart(part + first, ends, evidence[is_chosen])

    def evidence(self, row: int) -> NDArray[np.uint32]:
        """The evidence of one row."""
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        return self._files[file].evidence(row - int(self._first[file]))
