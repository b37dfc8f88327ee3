"""Metrics of predictions against targets. Pure, and importable without torch.

Precision, recall and F1 are those of `sklearn.metrics.precision_recall_fscore_support` with `zero_division=0`; a test
compares them. Importing scikit-learn takes a second of CPU time, a seventh of what a training process imports.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_api.comparison import OVERFLOW
from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import Metric

FEW_EXAMPLES = 10
"""A class with fewer test examples than that has metrics in steps of more than a tenth."""

_LARGEST_EXPONENT = math.log(sys.float_info.max)


class ClassMetrics(Message):
    """One class against all others."""

    id: int
    label: str
    precision: float
    """Share of the predictions of this class that are right; 0 where it was never predicted."""
    recall: float
    """Share of this class's examples that were found; 0 where it has none."""
    f1: float
    """Harmonic mean of both."""
    support: int
    """Examples of this class."""
    mistakes: int
    """Examples of this class that were missed, and examples of others that were taken for it."""


class Confusion(Message):
    """One cell of the confusion matrix that is not 0."""

    target: int
    """Label id of the examples."""
    prediction: int
    """Label id that the model gave them."""
    count: int


class ClassificationMetrics(Message):
    """How a classifier did on one split."""

    accuracy: float
    macro_f1: float
    """Mean F1 over the classes that occur among the targets or the predictions, each counted once."""
    count: int
    """Examples."""
    classes: int
    """All classes, also those that `per_class` leaves out."""
    hardly_tested: int
    """Of them, those with at least one and fewer than ten examples."""
    untested: int
    """Of them, those without an example."""
    per_class: tuple[ClassMetrics, ...]
    """In the order of the label ids. In `evaluation.json` at most 100: with more classes, the most informative ones."""
    confusion: tuple[Confusion, ...]
    """By target, then by prediction; among the classes of `per_class`."""

    @property
    def figures(self) -> dict[Metric, float]:
        """The two metrics of all classes together."""
        return {Metric.ACCURACY: self.accuracy, Metric.MACRO_F1: self.macro_f1}

    def of_classes(self, ids: frozenset[int]) -> "ClassificationMetrics":
        """The same metrics, with rows and cells of these classes alone."""
        return self.model_copy(
            update={
                "per_class": tuple(row for row in self.per_class if row.id in ids),
                "confusion": tuple(cell for cell in self.confusion if {cell.target, cell.prediction} <= ids),
            }
        )


def classification_metrics(
    predictions: Sequence[int] | npt.NDArray[np.integer],
    targets: Sequence[int] | npt.NDArray[np.integer],
    labels: Sequence[str],
) -> ClassificationMetrics:
    """Accuracy, macro F1, metrics of every class and the confusion matrix.

    `predictions` and `targets` are label ids of shape (examples,); `labels` names the ids 0, 1, ... Time and memory
    grow with examples and classes, not with classes squared.
    Raises ValueError for shapes that differ, for no examples and for an id without a name.
    """
    predicted, expected = np.asarray(predictions, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    if predicted.shape != expected.shape or expected.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and targets {expected.shape} must be lists of one length")
    if expected.size == 0:
        raise ValueError("no examples: metrics need at least one")
    for name, ids in (("prediction", predicted), ("target", expected)):
        if ids.min() < 0 or ids.max() >= len(labels):
            raise ValueError(f"{name} ids go from {ids.min()} to {ids.max()}, but there are {len(labels)} labels")
    is_wrong = predicted != expected
    hits, support, taken = (
        np.bincount(ids, minlength=len(labels)) for ids in (expected[~is_wrong], expected, predicted)
    )
    precision, recall, f1 = _shares(hits, taken), _shares(hits, support), _shares(2 * hits, support + taken)
    mistakes = np.bincount(np.concatenate([expected[is_wrong], predicted[is_wrong]]), minlength=len(labels))
    pairs, counts = np.unique(np.stack([expected, predicted]), axis=1, return_counts=True)
    return ClassificationMetrics(
        accuracy=float((predicted == expected).mean()),
        macro_f1=float(f1[np.union1d(expected, predicted)].mean()),
        count=int(expected.size),
        classes=len(labels),
        hardly_tested=int(((support > 0) & (support < FEW_EXAMPLES)).sum()),
        untested=int((support == 0).sum()),
        per_class=tuple(
            ClassMetrics(
                id=index,
                label=label,
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(support[index]),
                mistakes=int(mistakes[index]),
            )
            for index, label in enumerate(labels)
        ),
        confusion=tuple(
            Confusion(target=int(target), prediction=int(prediction), count=int(count))
            for target, prediction, count in zip(*pairs, counts, strict=True)
        ),
    )


def _shares(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Parts divided by wholes, and 0 for a whole of 0."""
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)


def perplexity(loss: float) -> float:
    """exp(mean negative log-likelihood per token, in nats); OVERFLOW where a float cannot hold it."""
    return math.exp(loss) if loss < _LARGEST_EXPONENT else OVERFLOW
