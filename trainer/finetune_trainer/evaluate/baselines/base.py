"""The interface of a simple baseline. Importable without torch and scikit-learn."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import SimpleBaseline

from ...registry import Registry


class NotFittedError(Exception):
    """A baseline cannot be fitted to this training split. The message says why, as the end of a sentence."""


class TrainingRows(Protocol):
    """The training split."""

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """(labels,): number of rows with each label, or of tokens with it if tokens have labels."""
        ...

    def __len__(self) -> int: ...

    def first(self, most: int) -> Iterator[Mapping[str, Any]]:
        """At most the first `most` rows. Rows are sorted by a hash keyed with `training.seed`, so the first ones are a
        random sample, and the same one in every evaluation."""
        ...


@dataclass(frozen=True)
class Answers:
    """Answers to T targets."""

    predictions: NDArray[np.int64]
    """(T,): label ids."""
    losses: NDArray[np.float64]
    """(T,): cross-entropy of the targets, in nats."""


class Predictor(Protocol):
    """A fitted baseline."""

    notes: tuple[str, ...]
    """How it was fitted, if that limits it: one sentence each."""

    def answers(self, rows: Sequence[Mapping[str, Any]], targets: NDArray[np.int64]) -> Answers:
        """Answer the targets, shape (T,), of some rows of the test split."""
        ...


class Baseline(ABC):
    """One simple baseline."""

    name: ClassVar[SimpleBaseline]

    @abstractmethod
    def fit(self, rows: TrainingRows) -> Predictor:
        """Fit it to the training split, deterministically. Raises NotFittedError."""


BASELINES: Registry[Baseline] = Registry(__package__, "spec.evaluation.simpleBaselines")
"""Baseline by name."""
