"""Figures of predictions against targets. Pure, and importable without torch."""

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from finetune_api.comparison import OVERFLOW
from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import Metric

_LARGEST_EXPONENT = math.log(sys.float_info.max)


class ClassMetrics(Message):
    """One class against all others."""

    label: str
    precision: float
    """Share of the predictions of this class that are right; 0 where it was never predicted."""
    recall: float
    """Share of this class's examples that were found; 0 where it has none."""
    f1: float
    """Harmonic mean of both."""
    support: int
    """Examples of this class."""


class ClassificationMetrics(Message):
    """How a classifier did on one split."""

    accuracy: float
    macro_f1: float
    """Mean F1 over the classes that occur among the targets or the predictions, each counted once."""
    count: int
    """Examples."""
    per_class: tuple[ClassMetrics, ...]
    """In the order of the label ids."""
    confusion: tuple[tuple[int, ...], ...]
    """`confusion[target][prediction]`: number of examples."""

    @property
    def figures(self) -> dict[Metric, float]:
        """The two figures that stand for the whole."""
        return {Metric.ACCURACY: self.accuracy, Metric.MACRO_F1: self.macro_f1}


def classification_metrics(
    predictions: Sequence[int] | npt.NDArray[np.integer],
    targets: Sequence[int] | npt.NDArray[np.integer],
    labels: Sequence[str],
) -> ClassificationMetrics:
    """Accuracy, macro F1, per-class figures and the confusion matrix.

    `predictions` and `targets` are label ids of shape (examples,); `labels` names the ids 0, 1, ...
    Raises ValueError for shapes that differ, for no examples and for an id without a name.
    """
    predicted, expected = np.asarray(predictions, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    if predicted.shape != expected.shape or expected.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and targets {expected.shape} have to be lists of one length")
    if expected.size == 0:
        raise ValueError("no examples: metrics need at least one")
    for name, ids in (("prediction", predicted), ("target", expected)):
        if ids.min() < 0 or ids.max() >= len(labels):
            raise ValueError(f"{name} ids go from {ids.min()} to {ids.max()}, but there are {len(labels)} labels")
    every = np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        expected, predicted, labels=every, average=None, zero_division=0.0
    )
    occurring = np.union1d(expected, predicted)
    return ClassificationMetrics(
        accuracy=float((predicted == expected).mean()),
        macro_f1=float(f1[occurring].mean()),
        count=int(expected.size),
        per_class=tuple(
            ClassMetrics(
                label=label,
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(support[index]),
            )
            for index, label in enumerate(labels)
        ),
        confusion=tuple(
            tuple(int(cell) for cell in row) for row in confusion_matrix(expected, predicted, labels=every)
        ),
    )


def perplexity(loss: float) -> float:
    """exp(mean negative log-likelihood per token, in nats); OVERFLOW where a float cannot hold it."""
    return math.exp(loss) if loss < _LARGEST_EXPONENT else OVERFLOW
