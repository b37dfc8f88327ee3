"""Always predicts the most frequent label of the training split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import SimpleBaseline

from .base import BASELINES, Answers, Baseline, TrainingRows


@BASELINES.register
class MajorityClass(Baseline):
    """Its probabilities are the shares of the labels, each counted once more, so that no loss is infinite."""

    name = SimpleBaseline.MAJORITY_CLASS

    def fit(self, rows: TrainingRows) -> "_Shares":
        """Reads no rows: `dataset.json` has the counts."""
        return _Shares(rows.label_counts)


class _Shares:
    notes: tuple[str, ...] = ()

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._label = int(counts.argmax())
        self._losses = -np.log((counts + 1) / (counts.sum() + len(counts)))

    def answers(self, rows: Sequence[Mapping[str, Any]], targets: NDArray[np.int64]) -> Answers:
        del rows
        return Answers(np.full(len(targets), self._label, dtype=np.int64), self._losses[targets])
