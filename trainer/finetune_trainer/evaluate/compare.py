"""What the figures say: verdict, weakest classes, pairs that are mixed up. Pure."""

from enum import StrEnum

from finetune_api.comparison import MetricDelta, compare_metrics, delta_text, metric_name, metric_text
from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import Metric, Task

from .metrics import ClassificationMetrics, ClassMetrics
from .records import Evaluation, ModelFigures
from .significance import PairedTest

SIGNIFICANT = 0.05
"""A p-value below this is called more than chance."""

FEW_EXAMPLES = 10
"""A class with fewer test examples than that has figures in steps of more than a tenth."""


class Level(StrEnum):
    """The verdict in one word."""

    BETTER = "Better"
    WORSE = "Worse"
    UNCLEAR = "Unclear"
    UNCOMPARED = "Uncompared"
    UNMEASURED = "Unmeasured"


class Verdict(Message):
    """The verdict in one word, one line and one or two sentences."""

    level: Level
    headline: str
    """`Accuracy 12.4 % → 93.3 %`."""
    change: str = ""
    """`+80.9 points`."""
    sentence: str


class ConfusedPair(Message):
    """Examples of one class that were taken for another."""

    target: str
    prediction: str
    count: int
    share: float
    """Of the target class's examples."""


def headline_metric(task: Task) -> Metric:
    """The one figure that a verdict is about."""
    return Metric.ACCURACY if task is Task.SEQUENCE_CLASSIFICATION else Metric.PERPLEXITY


def verdict(record: Evaluation) -> Verdict:
    """What a user may conclude from the figures."""
    if record.tuned is None:
        return Verdict(
            level=Level.UNMEASURED,
            headline="Not measured",
            sentence="There is no test split, so nothing was measured on held-out data. "
            "Set data.test.fraction above 0, or name data.test.sources, to get figures.",
        )
    metric = headline_metric(record.task)
    name, after = metric_name(metric), metric_text(metric, record.tuned.metrics[metric])
    row = next((row for row in record.comparison if row.metric is metric), None)
    measured = _measured_on(record.tuned, metric)
    if row is None or row.baseline is None or row.delta is None:
        return Verdict(
            level=Level.UNCOMPARED,
            headline=f"{name} {after}",
            sentence=f"{name} is {after} {measured}. No baseline was evaluated, so nothing says whether training "
            "helped.",
        )
    before = metric_text(metric, row.baseline)
    level = _level(row, record.paired_test)
    verb = "stayed at" if row.improved is None else "rose from" if row.delta > 0 else "fell from"
    moved = f"{name} {verb} {before}" + ("" if row.improved is None else f" to {after}")
    return Verdict(
        level=level,
        headline=f"{name} {before} → {after}",
        change="no change" if row.improved is None else delta_text(metric, row.delta),
        sentence=f"{moved} {measured}. {_chance(level, record.paired_test)}".rstrip(),
    )


def compare(baseline: ModelFigures | None, tuned: ModelFigures) -> tuple[MetricDelta, ...]:
    """Every figure of the tuned model beside the baseline's."""
    return compare_metrics(baseline.metrics if baseline else {}, tuned.metrics)


def worst_classes(metrics: ClassificationMetrics) -> tuple[ClassMetrics, ...]:
    """Classes by F1, worst first; those without a single test example come last, they were not measured."""
    return tuple(sorted(metrics.per_class, key=lambda row: (row.support == 0, row.f1, -row.support, row.label)))


def confused_pairs(metrics: ClassificationMetrics, most: int = 10) -> tuple[ConfusedPair, ...]:
    """The commonest mistakes, most frequent first."""
    labels = [row.label for row in metrics.per_class]
    pairs = [
        ConfusedPair(target=labels[row], prediction=labels[column], count=count, share=count / sum(counts))
        for row, counts in enumerate(metrics.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.target, pair.prediction))[:most])


def p_text(p_value: float) -> str:
    """`p = 0.034`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def _measured_on(figures: ModelFigures, metric: Metric) -> str:
    examples = f"{figures.examples:,} held-out example{'' if figures.examples == 1 else 's'}"
    if figures.tokens:
        examples += f" ({figures.tokens:,} tokens)"
    interval = figures.intervals.get(metric)
    if interval is None:
        return f"on {examples}"
    low, high = metric_text(metric, interval.low), metric_text(metric, interval.high)
    return f"on {examples} ({interval.confidence:.0%} interval {low} to {high})".replace("95%", "95 %")


def _level(row: MetricDelta, test: PairedTest | None) -> Level:
    """The test counts examples, the figure may weight them by tokens: only where both point one way is it a verdict."""
    if row.improved is None or test is None or test.p_value >= SIGNIFICANT:
        return Level.UNCLEAR
    if row.improved != (test.better > test.worse):
        return Level.UNCLEAR
    return Level.BETTER if row.improved else Level.WORSE


def _chance(level: Level, test: PairedTest | None) -> str:
    if test is None:
        return ""
    counts = f"{test.better:,} examples got better and {test.worse:,} worse; {test.name}: {p_text(test.p_value)}"
    if level is Level.UNCLEAR:
        return f"The difference could be chance ({counts})."
    if level is Level.WORSE:
        return f"Training made the model worse by more than chance explains ({counts})."
    return f"That is more than chance explains ({counts})."
