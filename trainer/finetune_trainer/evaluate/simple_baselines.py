"""Fits the simple baselines of `spec.evaluation.simpleBaselines` to the training split, and measures them on the test
split.

No model is loaded meanwhile: the memory of the evaluate stage is that of one model, or of one baseline.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.trainer_config import Prepared
from finetune_api.v1alpha1 import BASELINE_SUPPORT, Evaluation, SimpleBaseline

from ..data.info import DatasetInfo
from ..data.shards import TokenDataset
from ..progress import ProgressReporter
from ..tasks import IGNORED, TASKS
from ..tasks.base import Classified, Measured
from .baselines import BASELINES, Answers, NotFittedError, Predictor

_BATCH_ROWS = 2000
"""Rows that are answered at a time: 16 MB of probabilities for 1,000 classes."""


@dataclass(frozen=True)
class BaselineAnswers:
    """Metrics of one baseline on the test split."""

    name: SimpleBaseline
    measured: Measured
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredBaselines:
    """All baselines of a run."""

    found: tuple[BaselineAnswers, ...] = ()
    notes: tuple[str, ...] = ()
    """Why others were not measured, one sentence each."""


@dataclass(frozen=True)
class TrainingSplit:
    """The training split, of which only the shards are downloaded that have the rows that are read."""

    label_counts: NDArray[np.int64]
    count: int
    open: Callable[[int], TokenDataset]
    """Opens at least so many rows, or all."""

    @classmethod
    def of(cls, info: DatasetInfo, open_rows: Callable[[int], TokenDataset]) -> "TrainingSplit":
        """Create it from dataset.json."""
        counts = info.label_counts.get("train", {})
        return cls(np.array([counts.get(label, 0) for label in info.labels]), info.counts.train, open_rows)

    def __len__(self) -> int:
        return self.count

    def first(self, most: int) -> Iterator[Mapping[str, Any]]:
        """At most the first `most` rows."""
        rows = self.open(min(most, self.count))
        return (rows[index] for index in range(min(most, len(rows))))


def baselines_of(spec: Evaluation, prepared: Prepared) -> tuple[SimpleBaseline, ...]:
    """The baselines of a spec, in the order in which they are shown."""
    supported = TASKS[prepared.task].support.baselines
    wanted = supported if spec.simple_baselines is None else spec.simple_baselines
    return tuple(name for name in BASELINE_SUPPORT if name in wanted)


def measure_baselines(
    names: Sequence[SimpleBaseline],
    prepared: Prepared,
    training: TrainingSplit,
    test: TokenDataset,
    report: ProgressReporter,
) -> MeasuredBaselines:
    """Fit and measure each baseline. One that cannot be fitted to this data is left out, with a note."""
    found, notes = [], []
    for name in names:
        words = BASELINE_SUPPORT[name].name
        with report.phase("baselines", f"evaluating {words}"):
            started = time.perf_counter()
            try:
                predictor = BASELINES[name].fit(training)
            except NotFittedError as error:
                notes.append(f"{words[0].upper()}{words[1:]} was not evaluated as a baseline: {error}.")
                continue
            answers = classified(predictor, test)
            measured = TASKS[prepared.task].score(answers, len(test), prepared.labels)
            found.append(BaselineAnswers(name, measured, time.perf_counter() - started, predictor.notes))
    return MeasuredBaselines(tuple(found), tuple(notes))


def classified(predictor: Predictor, test: TokenDataset) -> Classified:
    """The answers of a baseline to all targets of the test split."""
    answers: list[Answers] = []
    targets: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    for begin in range(0, len(test), _BATCH_ROWS):
        rows = [test[index] for index in range(begin, min(begin + _BATCH_ROWS, len(test)))]
        labels = [np.atleast_1d(row["labels"]) for row in rows]
        of_row = [each[each != IGNORED] for each in labels]
        targets.append(np.concatenate(of_row).astype(np.int64))
        places.append(np.repeat(np.arange(begin, begin + len(rows)), [len(each) for each in of_row]))
        answers.append(predictor.answers(rows, targets[-1]))
    return Classified(
        np.concatenate([each.predictions for each in answers]),
        np.concatenate(targets),
        np.concatenate(places),
        np.concatenate([each.losses for each in answers]),
    )
