"""The report: one self-contained HTML file without scripts or network access. Pure.

All values from users or data are escaped by Jinja; only the SVG of `charts` is inserted unescaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from jinja2 import Environment
from markupsafe import Markup

from finetune_api.comparison import OVERFLOW, delta_text, metric_name, metric_text, number_text, share_text
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import METRIC_SUPPORT, Metric, PromotionOutcome

from ..learning_rate import ChosenRate, smoothed
from ..methods import METHODS
from ..tasks import TASKS
from ..tasks.metrics import FEW_EXAMPLES
from . import compare, formatting
from .charts import LINE_COLORS, Series, histogram, line_chart
from .configuration import spec_document, yaml_text
from .confusion_table import confusion_table
from .data_section import DataSection
from .pages import page_environment
from .pruned import speed_ratio
from .quantized import speed
from .records import Evaluation, ModelMetrics
from .run_comparison import RunComparison
from .run_comparison_page import shown_differences
from .timeline import AttemptBar, attempt_bars, phases, restart_marks, step_seconds
from .training_log import TrainingLog

_OUTCOMES = {
    PromotionOutcome.PROMOTED: "The model is promoted",
    PromotionOutcome.REFUSED: "The model was not promoted",
    PromotionOutcome.CONFLICT: "The model was not promoted, because another one was promoted at the same time",
}


_LOSS = "Loss"


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report is made from."""

    record: Evaluation
    config: TrainerConfig
    training: TrainingLog | None
    """None: the train stage stored no log."""
    data: DataSection
    phase_seconds: dict[str, float]
    """Phase durations of the evaluation itself."""
    rate: ChosenRate | None = None
    """The learning rate that was chosen because the spec had none."""
    earlier: RunComparison | None = None
    """Comparison with the earlier runs of the job. None: there are none."""


@dataclass(frozen=True)
class Card:
    """A value at the top of the report."""

    label: str
    value: str
    note: str = ""


def render_report(inputs: ReportInputs) -> str:
    """The HTML page as text."""
    training = inputs.training or TrainingLog()
    attempts = inputs.config.attempts
    bars = attempt_bars(attempts, step_seconds(training, attempts))
    record = inputs.record
    figures = record.tuned.classification if record.tuned else None
    before = record.baseline.classification if record.baseline else None
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            config=inputs.config,
            outcomes=_OUTCOMES,
            prepared=inputs.config.prepared,
            verdict=compare.verdict(record),
            baselines=compare.baseline_rows(record),
            regression_sets=compare.regression_rows(record),
            speed_ratio=speed_ratio(record),
            method=METHODS[inputs.config.spec.method.name],
            cards=_cards(inputs, training, bars),
            charts=[*_curves(training, restart_marks(attempts)), *_range_test(inputs.rate)],
            rate_sentence=_rate_sentence(inputs.rate),
            training_phases=training.phases,
            has_log=inputs.training is not None,
            bars=bars,
            train_phases=phases(training.phase_seconds),
            evaluate_phases=phases(inputs.phase_seconds),
            worst=[row for row in compare.worst_classes(figures) if row.support][: compare.WORST_CLASSES]
            if figures
            else [],
            tested=figures.classes - figures.untested if figures else 0,
            few=FEW_EXAMPLES,
            labeled=TASKS[record.task].labeled,
            hardly_tested=compare.list_names(compare.hardly_tested(figures), figures.hardly_tested) if figures else "",
            untested=compare.list_names(compare.untested(figures), figures.untested) if figures else "",
            before_f1={row.id: row.f1 for row in before.per_class} if before else {},
            confusion=confusion_table(figures) if figures else None,
            pairs=compare.confused_pairs(figures) if figures else (),
            data=inputs.data,
            length_chart=_length_chart(inputs.data),
            earlier=shown_differences(inputs.earlier) if inputs.earlier else None,
            configuration=yaml_text({"spec": spec_document(inputs.config.spec)}),
        )
    )


def _environment() -> Environment:
    environment = page_environment()
    environment.filters.update(
        time=formatting.time_text,
        number=number_text,
        percent=share_text,
        metric_name=metric_name,
        p_text=compare.p_text,
        megabytes=formatting.megabytes,
        speed=_speed_text,
    )
    environment.globals.update(metric_text=metric_text, delta_text=delta_text)
    return environment


def _speed_text(figures: ModelMetrics | None) -> str:
    per_second = speed(figures)
    return "–" if per_second is None else f"{per_second:g}"


def _cards(inputs: ReportInputs, training: TrainingLog, bars: Sequence[AttemptBar]) -> list[Card]:
    record = inputs.record
    cards = []
    if record.tuned:
        for metric, value in record.tuned.metrics.items():
            interval = record.tuned.intervals.get(metric)
            note = f"{'lower' if METRIC_SUPPORT[metric].lower_is_better else 'higher'} is better"
            if interval:
                note = f"95 %: {metric_text(metric, interval.low)} to {metric_text(metric, interval.high)}"
            cards.append(Card(metric_name(metric), metric_text(metric, value), note))
    if training.steps:
        tokens = f"{formatting.size_text(training.tokens)} tokens" if training.tokens else ""
        cards.append(Card("Optimizer steps", formatting.count_text(training.steps), tokens))
    if bars:
        lost = sum(bar.lost.seconds for bar in bars if bar.lost)
        seconds = (
            formatting.moment(bars[-1].status.end_time or bars[-1].status.start_time)
            - formatting.moment(bars[0].status.start_time)
        ).total_seconds()
        restarts = len(bars) - 1
        note = f"{restarts} restart{'' if restarts == 1 else 's'}" + (
            f", {formatting.duration_text(lost)} lost" if restarts else ""
        )
        cards.append(Card("Training time", formatting.duration_text(seconds), note))
    counts = record.counts
    cards.append(
        Card(
            "Training data",
            formatting.count_text(counts.train),
            f"{counts.validation:,} validation, {counts.test:,} test",
        )
    )
    return cards


def _curves(training: TrainingLog, marks: Sequence[tuple[float, str]]) -> list[tuple[str, Markup]]:
    """Title and chart of every curve with at least two points, or one if it was measured at few points."""
    others = [metric for metric in Metric if metric is not Metric.LOSS]
    shares = [metric for metric in others if METRIC_SUPPORT[metric].is_share]
    wanted = [
        (
            _LOSS,
            [
                Series("training", training.curve("loss"), smooth=True),
                Series("validation", training.curve("eval_loss"), "orange", dots=True),
            ],
            False,
        ),
        (
            "Validation metrics",
            [_validation(training, metric, color) for metric, color in zip(shares, cycle(LINE_COLORS))],
            True,
        ),
        *(
            (f"Validation {METRIC_SUPPORT[metric].name}", [_validation(training, metric)], False)
            for metric in others
            if metric not in shares
        ),
        ("Learning rate", [Series("learning rate", training.curve("learning_rate"))], False),
        ("Gradient norm", [Series("gradient norm", training.curve("grad_norm"), smooth=True)], False),
    ]
    unfreezing = [
        (phase.first_step, str(number)) for number, phase in enumerate(training.phases, start=1) if number > 1
    ]
    drawn = []
    for title, series, percent in wanted:
        present = [line for line in series if line.points]
        if present:
            lines = unfreezing if title == _LOSS else ()
            drawn.append((title, line_chart(title, present, marks=marks, phases=lines, percent=percent)))
    return drawn


def _range_test(rate: ChosenRate | None) -> list[tuple[str, Markup]]:
    """Title and chart of the range test, if there was one."""
    if rate is None or not rate.losses:
        return []
    title = "Loss of the learning rate range test"
    curve = map(float, smoothed(rate.losses))
    lines = [
        Series("measured", tuple(zip(rate.rates, rate.losses, strict=True)), dots=True),
        Series("smoothed", tuple(zip(rate.rates, curve, strict=True)), "orange"),
    ]
    marks = [(rate.learning_rate, f"{rate.learning_rate:g}")]
    return [(title, line_chart(title, lines, marks=marks, x_label="learning rate", log_x=True))]


def _rate_sentence(rate: ChosenRate | None) -> str:
    if rate is None:
        return ""
    return f"{rate.sentence[0].upper()}{rate.sentence[1:]}."


def _validation(training: TrainingLog, metric: Metric, color: str = "blue") -> Series:
    return Series(METRIC_SUPPORT[metric].name, _finite(training.curve(f"eval_{metric.key}")), color, dots=True)


def _finite(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Without values that overflowed: a single one would flatten all others."""
    return [(step, value) for step, value in curve if value < OVERFLOW]


def _length_chart(data: DataSection) -> Markup | None:
    if not data.histogram:
        return None
    return histogram("Length of the training examples", data.edges, data.histogram, x_label="tokens per example")
