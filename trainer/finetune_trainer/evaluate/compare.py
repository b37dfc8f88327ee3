"""Interprets the metrics: verdict, weakest classes, confused pairs. Pure."""

from collections.abc import Sequence
from enum import StrEnum

from finetune_api.comparison import MetricDelta, compare_metrics, delta_text, metric_name, metric_text
from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import BASELINE_SUPPORT, METRIC_SUPPORT, Metric

from ..tasks.metrics import FEW_EXAMPLES, ClassificationMetrics, ClassMetrics, Confusion
from .confusion_table import MOST_CLASSES, classes_with_most_mistakes
from .records import BaselineResult, Evaluation, ModelMetrics, RegressionResult
from .significance import Interval, PairedTest

SIGNIFICANT = 0.05
"""Significance level of the paired test."""

WORST_CLASSES = 30
"""Maximum classes in the report's table."""

PAIRS = 10
"""Maximum confused pairs in the report."""

NAMED_CLASSES = 8
"""Maximum classes that a sentence names."""

_ALL_CLASSES = 100
"""Maximum classes up to which `evaluation.json` has all of them."""


class Level(StrEnum):
    """The verdict as one word."""

    BETTER = "Better"
    WORSE = "Worse"
    UNCLEAR = "Unclear"
    UNCOMPARED = "Uncompared"
    UNMEASURED = "Unmeasured"


class Verdict(Message):
    """The verdict as one word, one line, and one or two sentences."""

    level: Level
    headline: str
    """`Accuracy 12.4 % → 93.3 %`."""
    change: str = ""
    """`+80.9 points`."""
    sentence: str


class BaselineRow(Message):
    """A simple baseline as shown in report and model card."""

    name: str
    """`TF-IDF with logistic regression`."""
    metrics: dict[Metric, float]
    level: Level
    """Whether the tuned model is better than it."""
    comparison: str
    """One sentence: whether the tuned model is better than it, and the paired test."""
    notes: tuple[str, ...] = ()


class RegressionRow(Message):
    """A regression set as shown in report and model card."""

    name: str
    comparison: tuple[MetricDelta, ...]
    level: Level
    """Whether the tuned model is better on it than the base model."""
    sentence: str


class ConfusedPair(Message):
    """Examples of one class that were predicted as another."""

    target: str
    prediction: str
    count: int
    share: float
    """As a share of the target class's examples."""


def verdict(record: Evaluation) -> Verdict:
    """Derive the verdict from the metrics. It names every simple baseline that the model does not clearly beat."""
    found = _verdict(record)
    lacking = [row.comparison for row in baseline_rows(record) if row.level is not Level.BETTER]
    return found.model_copy(update={"sentence": " ".join([found.sentence, *lacking])})


def baseline_rows(record: Evaluation) -> list[BaselineRow]:
    """The simple baselines, each compared with the tuned model by the metric of the verdict."""
    return [_baseline_row(record, found, record.tuned) for found in record.baselines if record.tuned is not None]


def _baseline_row(record: Evaluation, found: BaselineResult, tuned: ModelMetrics) -> BaselineRow:
    metric, test, name = record.headline, found.paired_test, BASELINE_SUPPORT[found.name].name
    (row,) = compare_metrics(found.figures.metrics, {metric: tuned.metrics[metric]})
    level = _level(row, test)
    relation = {Level.BETTER: "significantly better than", Level.WORSE: "significantly worse than"}.get(
        level, "not significantly better than"
    )
    value = metric_text(metric, found.figures.metrics[metric])
    interval = found.figures.intervals.get(metric)
    spread = "" if interval is None else f", 95 % interval {_range(metric, interval)}"
    return BaselineRow(
        name=name[0].upper() + name[1:],
        metrics=found.figures.metrics,
        level=level,
        comparison=f"The model is {relation} {name} ({METRIC_SUPPORT[metric].name} {value}{spread}): it is better on "
        f"{test.better:,} examples and worse on {test.worse:,} ({test.name}: {p_text(test.p_value)}).",
        notes=found.notes,
    )


def regression_rows(record: Evaluation) -> list[RegressionRow]:
    """The regression sets, on each of which the tuned model is compared with the base model."""
    return [_regression_row(record.headline, found) for found in record.regression_sets]


def _regression_row(metric: Metric, found: RegressionResult) -> RegressionRow:
    comparison = compare(found.baseline, found.tuned)
    row = next((row for row in comparison if row.metric is metric), comparison[0])
    level = Level.UNCOMPARED if found.baseline is None else _level(row, found.paired_test)
    name, after, measured = (
        metric_name(row.metric),
        metric_text(row.metric, row.tuned),
        _measured_on(found.tuned, row.metric),
    )
    if row.baseline is None:
        moved = f"{name} is {after} {measured}."
    elif row.improved is None:
        moved = f"{name} stayed at {after} {measured}."
    else:
        verb = "rose" if row.tuned > row.baseline else "fell"
        moved = f"{name} {verb} from {metric_text(row.metric, row.baseline)} to {after} {measured}."
    dropped = f" {found.dropped:,} records cannot be used." if found.dropped else ""
    return RegressionRow(
        name=found.name,
        comparison=comparison,
        level=level,
        sentence=f"{found.name}: {moved} {_significance_text(level, found.paired_test)}".rstrip() + dropped,
    )


def _verdict(record: Evaluation) -> Verdict:
    if record.tuned is None:
        return Verdict(
            level=Level.UNMEASURED,
            headline="Not measured",
            sentence="There is no test split, so nothing was measured on held-out data. "
            "Set data.test.fraction above 0, or name data.test.sources, to get metrics.",
        )
    metric = record.headline
    name, after = metric_name(metric), metric_text(metric, record.tuned.metrics[metric])
    row = next((row for row in record.comparison if row.metric is metric), None)
    measured = _measured_on(record.tuned, metric)
    if row is None or row.baseline is None or row.delta is None:
        return Verdict(
            level=Level.UNCOMPARED,
            headline=f"{name} {after}",
            sentence=f"{name} is {after} {measured}. The base model was not evaluated, so it is unknown whether "
            "training helped.",
        )
    before = metric_text(metric, row.baseline)
    level = _level(row, record.paired_test)
    verb = "stayed at" if row.improved is None else "rose from" if row.delta > 0 else "fell from"
    moved = f"{name} {verb} {before}" + ("" if row.improved is None else f" to {after}")
    return Verdict(
        level=level,
        headline=f"{name} {before} → {after}",
        change="no change" if row.improved is None else delta_text(metric, row.delta),
        sentence=f"{moved} {measured}. {_significance_text(level, record.paired_test)}".rstrip(),
    )


def compare(baseline: ModelMetrics | None, tuned: ModelMetrics) -> tuple[MetricDelta, ...]:
    """Every metric of the tuned model, with the baseline's value."""
    return compare_metrics(baseline.metrics if baseline else {}, tuned.metrics)


def limit_classes(
    baseline: ModelMetrics | None, tuned: ModelMetrics | None
) -> tuple[ModelMetrics | None, ModelMetrics | None]:
    """Both models with the classes that `recorded_classes` selects, which bounds the size of the record."""
    if tuned is None or tuned.classification is None:
        return baseline, tuned
    kept = recorded_classes(tuned.classification)

    def reduced(figures: ModelMetrics) -> ModelMetrics:
        assert figures.classification is not None, "both models are evaluated on the same task"
        return figures.model_copy(update={"classification": figures.classification.of_classes(kept)})

    return reduced(baseline) if baseline else None, reduced(tuned)


def recorded_classes(metrics: ClassificationMetrics) -> frozenset[int]:
    """Ids of the classes that `evaluation.json` has: at most 100, including all that the report shows.

    With more classes: the 30 with the lowest F1, the 30 with the most mistakes, those of the ten most frequent
    mistakes, and the first eight classes each with few and with no test examples.
    """
    if metrics.classes <= _ALL_CLASSES:
        return frozenset(row.id for row in metrics.per_class)
    rows = [
        *worst_classes(metrics)[:WORST_CLASSES],
        *classes_with_most_mistakes(metrics, MOST_CLASSES),
        *hardly_tested(metrics)[:NAMED_CLASSES],
        *untested(metrics)[:NAMED_CLASSES],
    ]
    pairs = _mistakes(metrics)[:PAIRS]
    return frozenset([row.id for row in rows] + [id_ for cell in pairs for id_ in (cell.target, cell.prediction)])


def worst_classes(metrics: ClassificationMetrics) -> tuple[ClassMetrics, ...]:
    """Classes by F1, worst first; classes without test examples come last, since they were not measured."""
    return tuple(sorted(metrics.per_class, key=lambda row: (row.support == 0, row.f1, -row.support, row.label)))


def hardly_tested(metrics: ClassificationMetrics) -> list[ClassMetrics]:
    """Classes with some test examples, but fewer than ten."""
    return [row for row in metrics.per_class if 0 < row.support < FEW_EXAMPLES]


def untested(metrics: ClassificationMetrics) -> list[ClassMetrics]:
    """Classes without a test example."""
    return [row for row in metrics.per_class if row.support == 0]


def list_names(classes: Sequence[ClassMetrics], number: int) -> str:
    """The names of the first eight of `number` classes, and how many more there are."""
    shown = classes[:NAMED_CLASSES]
    more = f" and {number - len(shown):,} more" if number > len(shown) else ""
    return ", ".join(row.label for row in shown) + more


def confused_pairs(metrics: ClassificationMetrics, most: int = PAIRS) -> tuple[ConfusedPair, ...]:
    """The most frequent mistakes, most frequent first."""
    rows = {row.id: row for row in metrics.per_class}
    return tuple(
        ConfusedPair(
            target=rows[cell.target].label,
            prediction=rows[cell.prediction].label,
            count=cell.count,
            share=cell.count / rows[cell.target].support,
        )
        for cell in _mistakes(metrics)[:most]
    )


def _mistakes(metrics: ClassificationMetrics) -> list[Confusion]:
    """Sorted by count, then by share of the target class, then by name."""
    rows = {row.id: row for row in metrics.per_class}

    def order(cell: Confusion) -> tuple[int, int, str, str]:
        target = rows[cell.target]
        return (-cell.count, target.support, target.label, rows[cell.prediction].label)

    return sorted((cell for cell in metrics.confusion if cell.target != cell.prediction), key=order)


def p_text(p_value: float) -> str:
    """`p = 0.034`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def _measured_on(figures: ModelMetrics, metric: Metric) -> str:
    examples = f"{figures.examples:,} held-out example{'' if figures.examples == 1 else 's'}"
    if figures.tokens:
        examples += f" ({figures.tokens:,} tokens)"
    interval = figures.intervals.get(metric)
    if interval is None:
        return f"on {examples}"
    return f"on {examples} ({interval.confidence:.0%} interval {_range(metric, interval)})".replace("95%", "95 %")


def _range(metric: Metric, interval: Interval) -> str:
    return f"{metric_text(metric, interval.low)} to {metric_text(metric, interval.high)}"


def _level(row: MetricDelta, test: PairedTest | None) -> Level:
    """Return the level. Better or worse requires that the paired test and the metric agree."""
    if row.improved is None or test is None or test.p_value >= SIGNIFICANT:
        return Level.UNCLEAR
    if row.improved != (test.better > test.worse):
        return Level.UNCLEAR
    return Level.BETTER if row.improved else Level.WORSE


def _significance_text(level: Level, test: PairedTest | None) -> str:
    if test is None:
        return ""
    counts = f"{test.better:,} examples improved and {test.worse:,} got worse; {test.name}: {p_text(test.p_value)}"
    if level is Level.UNCLEAR:
        return f"The result is inconclusive ({counts})."
    if level is Level.WORSE:
        return f"The model got significantly worse ({counts})."
    return f"The difference is statistically significant ({counts})."
