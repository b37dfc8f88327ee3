"""The format of `evaluation.json`."""

from finetune_api.comparison import MetricDelta
from finetune_api.trainer_config import JobRef, Message, SplitCounts
from finetune_api.v1alpha1 import (
    CandidateName,
    DataFormat,
    Metric,
    PromotionOutcome,
    PruningAlgorithm,
    SimpleBaseline,
    Task,
)

from ..methods.pruning.record import PrunedKind
from ..promotion.records import Check, RegistryAddress
from ..tasks.metrics import ClassificationMetrics
from .significance import Interval, PairedTest

FORMAT_VERSION = 1


class ModelMetrics(Message):
    """Results of one model on the test split."""

    metrics: dict[Metric, float]
    intervals: dict[Metric, Interval] = {}
    """95 % intervals of the metrics that have one."""
    classification: ClassificationMetrics | None = None
    """Only for classifiers."""
    examples: int
    tokens: int = 0
    """Only for language models: number of label tokens that the loss is averaged over."""
    seconds: float
    """Duration of the forward passes."""


class Generation(Message):
    """The answers to one prompt."""

    prompt: str
    before: str | None = None
    """The base model's; absent if it was not evaluated."""
    after: str


class BaselineResult(Message):
    """A simple baseline of `spec.evaluation.simpleBaselines` on the test split."""

    name: SimpleBaseline
    figures: ModelMetrics
    """Without metrics of classes, which bounds the record."""
    paired_test: PairedTest
    """The baseline against the tuned model."""
    notes: tuple[str, ...] = ()
    """How it was fitted, if that limits it: one sentence each."""


class RegressionResult(Message):
    """A set of `spec.evaluation.regressionSets`. Without metrics of classes, which bounds the record."""

    name: str
    baseline: ModelMetrics | None = None
    """Absent: the base model was not evaluated."""
    tuned: ModelMetrics
    paired_test: PairedTest | None = None
    """The base model against the tuned model. Absent: the base model was not evaluated."""
    dropped: int = 0
    """Records that cannot be used, with `spec.data.onBadRecord: Skip`."""


class Address(Message):
    """A folder in storage or on the hub, and the digest of its contents."""

    uri: str
    digest: str


class StoredSize(Message):
    """Weight files of a model."""

    weights: int
    nonzero: int
    """Weights that are not zero."""
    bytes: int
    compressed: int
    """Bytes after gzip."""


class PruningResult(Message):
    """Result of `spec.method.full.pruning`."""

    algorithm: PruningAlgorithm
    kinds: tuple[PrunedKind, ...] = ()
    """Empty: no weights became zero."""
    dropped_layers: int = 0
    pruned: ModelMetrics | None = None
    """The base model after pruning, before the training. Absent: not evaluated."""
    base_size: StoredSize | None = None
    """Absent: the base model was not evaluated."""
    size: StoredSize

    @property
    def weights(self) -> int:
        """Weights of the pruned matrices."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def zeros(self) -> int:
        """Those that were set to zero."""
        return sum(kind.zeros for kind in self.kinds)


class ExportedModel(Message):
    """An export with quantized weights."""

    name: CandidateName
    title: str
    """`Int8`, `GGUF Q8_0`, `CompressedTensors W8A16`."""
    address: Address
    bytes: int
    """Size of its files."""
    figures: ModelMetrics | None
    """Without metrics of classes. Absent: there is no test split."""


class QuantizedExports(Message):
    """Exports with quantized weights, compared with the trained model."""

    trained_bytes: int
    """Size of the files of the trained model in its own type, without quantization."""
    exports: tuple[ExportedModel, ...]


class Reloaded(Message):
    """An exported folder that was loaded from its files, compared with the trained model."""

    uri: str
    split: str
    """`validation`, `test` or `train`: the split of the rows."""
    rows: int
    """0: no row has a token that carries loss, so only the names and shapes of the weights were compared."""
    trained: float
    """The trained model's loss per target in nats, averaged over the rows; 0 without rows."""
    reloaded: float
    """The same loss of the exported folder."""
    tolerance: float
    """Maximum accepted mean difference per row."""

    @property
    def sentence(self) -> str:
        """Summary for report, model card and log, without the address."""
        if not self.rows:
            return "reloaded with all weights; the dataset has no rows for a comparison of the loss"
        return (
            f"after reloading, the loss is {self.reloaded:.4f} on {self.rows} rows of the {self.split} split; "
            f"the trained model had {self.trained:.4f}"
        )


class PromotionDecision(Message):
    """Result of `spec.evaluation.promote`."""

    outcome: PromotionOutcome
    time: str
    """RFC 3339, UTC."""
    metric: Metric
    """Metric of the gains."""
    checks: tuple[Check, ...]
    """Every condition with its values."""
    note: str = ""
    """One sentence about an outcome that the conditions do not explain."""
    uri: str = ""
    """Folder of the model that is promoted now. Empty: none."""
    previous: str = ""
    """Folder of the model that was promoted before. Empty: none."""
    paired_test: PairedTest | None = None
    """The promoted model against the tuned one. Absent: they were not compared."""
    registry: RegistryAddress | None = None
    """Where the model is registered if it is promoted. Absent: nowhere."""
    warning: str = ""
    """Why the promoted model was not registered. Empty: it was, or there is no registry."""

    @property
    def message(self) -> str:
        """The outcome in one line: the note, the conditions that do not hold, then the others."""
        failed = [check.text for check in self.checks if not check.holds]
        held = [check.text for check in self.checks if check.holds]
        parts = [
            *([self.note] if self.note else []),
            *([f"does not hold: {'; '.join(failed)}"] if failed else []),
            *([f"holds: {'; '.join(held)}"] if held else []),
            *([self.warning] if self.warning else []),
        ]
        return ". ".join(parts)


class Evaluation(Message):
    """`evaluation.json`: all results of one run."""

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
    baseline: ModelMetrics | None = None
    tuned: ModelMetrics | None = None
    """Absent: there is no test split."""
    promoted: ModelMetrics | None = None
    """The model that was promoted before, without metrics of classes. Absent: there was none to compare with."""
    headline: Metric
    """The metric that decides the verdict."""
    comparison: tuple[MetricDelta, ...] = ()
    paired_test: PairedTest | None = None
    baselines: tuple[BaselineResult, ...] = ()
    """Simple baselines. Empty: written by an earlier version, or none was evaluated."""
    regression_sets: tuple[RegressionResult, ...] = ()
    """One entry for each set of `spec.evaluation.regressionSets`."""
    promotion: PromotionDecision | None = None
    """Absent: `spec.evaluation.promote` is not set."""
    pruning: PruningResult | None = None
    """Absent: `spec.method.full.pruning` is not set."""
    quantized: QuantizedExports | None = None
    """Absent: no format of `spec.output.formats` has quantized weights."""
    majority_share: float | None = None
    """Only for classifiers: accuracy of always predicting the most frequent class of the test split."""
    generations: tuple[Generation, ...] = ()
    reloaded: tuple[Reloaded, ...] = ()
    """One entry per exported folder."""
    notes: tuple[str, ...] = ()
    """Notes on how to read the metrics, one sentence each."""
    versions: dict[str, str] = {}
    """Versions of the packages that computed the results."""
