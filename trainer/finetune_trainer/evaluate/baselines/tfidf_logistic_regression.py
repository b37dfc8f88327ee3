"""A linear classifier on the TF-IDF weights of the model's tokens.

The prepared rows have tokens and no texts, so the terms are token ids, and the weights are those of
`sklearn.feature_extraction.text.TfidfVectorizer` without its own division into words. Texts are not decoded: a
tokenizer cannot always restore them, and a word that is divided into several tokens is several terms in any case.

Size is bounded so that fitting takes at most about a minute on one core and 300 MiB. The memory of the evaluate stage
(`finetune_api.evaluation_needs`) has room for it: no model is loaded at the same time.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import SimpleBaseline

from .base import BASELINES, Answers, Baseline, NotFittedError, TrainingRows

MAX_CLASSES = 1000
MAX_ROWS = 50_000
MAX_TOKENS = 2_000_000
MAX_FEATURES = 50_000
MAX_ITERATIONS = 100
MAX_BYTES = 300 * 2**20
"""Peak memory of fitting, without the libraries."""

_ROWS_X_CLASSES = 1_000_000
"""Scores of all rows, which every iteration computes: 8 MB, a few times."""
_FEATURES_X_CLASSES = 1_000_000
"""Coefficients. The solver holds 25 vectors of this size: 200 MB."""
_TOKENS_X_CLASSES = 100_000_000
"""Multiplications of an iteration, which takes about half a second."""
_SMALLEST = float(np.finfo(np.float64).eps)
"""Probability of a label that has no training row, as in `sklearn.metrics.log_loss`."""


@BASELINES.register
class TfidfLogisticRegression(Baseline):
    """Above a bound, the first rows, which are a random sample, and the most frequent tokens are used."""

    name = SimpleBaseline.TFIDF_LOGISTIC_REGRESSION

    def fit(self, rows: TrainingRows) -> "_Linear":
        """Raises NotFittedError above 1,000 classes, and if the rows that are used have a single label."""
        classes = len(rows.label_counts)
        if classes > MAX_CLASSES:
            raise NotFittedError(f"there are {classes:,} classes, more than {MAX_CLASSES:,}")
        texts, labels = _bounded(rows, classes)
        if len(set(labels)) < 2:
            raise NotFittedError(f"the {len(labels):,} training rows that it is fitted to have a single label")
        return _Linear(texts, np.array(labels), classes, len(rows))


def _bounded(rows: TrainingRows, classes: int) -> tuple[list[NDArray[np.int64]], list[int]]:
    """Tokens and label of the first rows, within all bounds."""
    tokens = min(MAX_TOKENS, _TOKENS_X_CLASSES // classes)
    texts: list[NDArray[np.int64]] = []
    labels: list[int] = []
    for row in rows.first(min(MAX_ROWS, _ROWS_X_CLASSES // classes)):
        tokens -= len(row["input_ids"])
        if tokens < 0 and texts:
            break
        texts.append(row["input_ids"].astype(np.int32))
        labels.append(row["labels"])
    return texts, labels


class _Linear:
    def __init__(self, texts: list[NDArray[np.int64]], labels: NDArray[np.int64], classes: int, available: int) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        features = min(MAX_FEATURES, _FEATURES_X_CLASSES // classes)
        self._terms = TfidfVectorizer(analyzer=_token_ids, max_features=features, dtype=np.float32)
        weights = self._terms.fit_transform(texts)
        self._model = LogisticRegression(max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._model.fit(weights, labels)
        self._columns = np.full(classes, -1)
        self._columns[self._model.classes_] = np.arange(len(self._model.classes_))
        notes = []
        if len(texts) < available:
            notes.append(f"It is fitted to {len(texts):,} of the {available:,} training rows.")
        if len(self._terms.vocabulary_) == features:
            notes.append(f"It uses the {features:,} most frequent tokens.")
        if any(issubclass(entry.category, ConvergenceWarning) for entry in caught):
            notes.append(f"Its solver was stopped after {MAX_ITERATIONS} iterations.")
        self.notes = tuple(notes)

    def answers(self, rows: Sequence[Mapping[str, Any]], targets: NDArray[np.int64]) -> Answers:
        probabilities = self._model.predict_proba(self._terms.transform([row["input_ids"] for row in rows]))
        columns = self._columns[targets]
        of_target = np.where(columns >= 0, probabilities[np.arange(len(targets)), columns], 0.0)
        predictions = self._model.classes_[probabilities.argmax(axis=1)].astype(np.int64)
        return Answers(predictions, -np.log(np.maximum(of_target, _SMALLEST)))


def _token_ids(text: NDArray[np.integer[Any]]) -> Iterator[int]:
    """The terms of a text."""
    return iter(text.tolist())
