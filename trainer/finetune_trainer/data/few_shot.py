"""`spec.data.fewShot`: which rows of the training split are used. Pure.

The first rows of each label in key order are used. Rows sorted by key are in a random order that depends on
`training.seed` and their content alone (see `splits`), so the subset does not depend on files, blocks or processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from .problems import listed
from .splits import Codes, ranks_in_groups

NAME = "few-shot"
_LISTED_LABELS = 5


@dataclass(frozen=True)
class Parameters:
    """Part of the digest of the dataset."""

    per_class: int | None
    """Rows of each label."""
    examples: int | None
    """Rows of the whole training split."""


def parameters(spec: Spec) -> Parameters | None:
    """None: all rows are used."""
    few_shot = spec.data.few_shot
    return None if few_shot is None else Parameters(few_shot.per_class, few_shot.examples)


class Subset:
    """Selects rows of the training split, which it gets in key order, in parts."""

    def __init__(self, chosen: Parameters, labels: int) -> None:
        self._by_label = chosen.per_class is not None
        self._most = chosen.per_class or chosen.examples or 0
        self._seen = np.zeros(labels if self._by_label else 1, dtype=np.int64)
        self.left_out = 0
        """Number of rows that were not taken so far."""

    def take(self, codes: Codes, is_usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the next rows to use. Rows that are not usable, because no token carries loss, do not count."""
        groups = codes if self._by_label else np.zeros(len(codes), dtype=np.int64)
        is_taken = is_usable.copy()
        is_taken[is_usable] = ranks_in_groups(groups[is_usable], self._seen) < self._most
        self._seen += np.bincount(groups[is_usable], minlength=len(self._seen))
        self.left_out += int((is_usable & ~is_taken).sum())
        return is_taken

    def remarks(self, labels: Sequence[str]) -> tuple[str, ...]:
        """What the user asked for and the data does not have."""
        if not self._by_label:
            (found,) = self._seen.tolist()
            if found >= self._most:
                return ()
            return (f"the training split has {found:,} examples, fewer than spec.data.fewShot.examples; all are used",)
        few = np.flatnonzero((self._seen > 0) & (self._seen < self._most)).tolist()
        if not few:
            return ()
        names = listed([f"{labels[label]} ({self._seen[label]})" for label in few], most=_LISTED_LABELS)
        return (
            f"{len(few):,} labels have fewer training records than spec.data.fewShot.perClass, {self._most:,}; "
            f"all of them are used: {names}",
        )
