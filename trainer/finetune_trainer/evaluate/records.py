"""What an evaluation leaves as `evaluation.json`, and what it reads of `training.json`."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_api.comparison import MetricDelta
from finetune_api.trainer_config import JobRef, Message, SplitCounts
from finetune_api.v1alpha1 import DataFormat, Metric, Task

from ..tasks.metrics import ClassificationMetrics
from .significance import Interval, PairedTest

FORMAT_VERSION = 1


class ModelFigures(Message):
    """What one model did on the test split."""

    metrics: dict[Metric, float]
    intervals: dict[Metric, Interval] = {}
    """95 % intervals of the metrics that have one."""
    classification: ClassificationMetrics | None = None
    """Classifiers only."""
    examples: int
    tokens: int = 0
    """Language models: label tokens that the loss is a mean over."""
    seconds: float
    """Time of the forward passes."""


class Generation(Message):
    """One prompt's answers."""

    prompt: str
    before: str | None = None
    """The base model's; absent where it was not evaluated."""
    after: str


class Address(Message):
    """A folder in storage or on the hub, and what was in it."""

    uri: str
    digest: str


class Reloaded(Message):
    """An exported folder that was loaded again from its files, compared with the model that was trained."""

    uri: str
    split: str
    """`validation`, `test` or `train`: where the rows are from."""
    rows: int
    """0: no row has a token that carries loss, so only the names and shapes of the weights were compared."""
    trained: float
    """Mean over the rows of the trained model's loss per target, in nats; 0 without rows."""
    reloaded: float
    """The same figure of the folder."""
    tolerance: float
    """Largest mean difference per row that is accepted."""

    @property
    def sentence(self) -> str:
        """For report, model card and log; without the address."""
        if not self.rows:
            return "loaded again with all weights; the data set has no rows to compare figures on"
        return (
            f"loaded again, it has a loss of {self.reloaded:.4f} on {self.rows} rows of the {self.split} split; "
            f"the model that was trained had {self.trained:.4f}"
        )


class Evaluation(Message):
    """`evaluation.json`: all figures of one run."""

    version: int = FORMAT_VERSION
    job: JobRef
    run: int
    time: str
    """RFC 3339, UTC."""
    task: Task
    format: DataFormat
    base_model: Address
    model: Address
    dataset: Address
    counts: SplitCounts
    baseline: ModelFigures | None = None
    tuned: ModelFigures | None = None
    """Absent: there was no test split."""
    headline: Metric
    """The metric that decides the verdict."""
    comparison: tuple[MetricDelta, ...] = ()
    paired_test: PairedTest | None = None
    majority_share: float | None = None
    """Classifiers: accuracy of always naming the most frequent class of the test split."""
    generations: tuple[Generation, ...] = ()
    reloaded: tuple[Reloaded, ...] = ()
    """One entry for every exported folder."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know, one sentence each."""
    versions: dict[str, str] = {}
    """Of the packages that made the figures."""


class TrainingLog(BaseModel):
    """`training.json`, written by the train stage: the whole run's log without duplicates."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    log: tuple[dict[str, Any], ...] = ()
    attempt: int = 0
    phase_seconds: dict[str, float] = {}
    steps: int = 0
    tokens: int = 0
    warnings: tuple[str, ...] = ()

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every entry that has the figure, in order."""
        return [
            (int(entry["step"]), float(entry[name]))
            for entry in self.log
            if "step" in entry and isinstance(entry.get(name), int | float)
        ]
