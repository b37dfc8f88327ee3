"""The verdict in words."""

import pytest

from finetune_api.v1alpha1 import Metric, Task
from finetune_trainer.evaluate.compare import (
    Level,
    baseline_rows,
    compare,
    confused_pairs,
    p_text,
    regression_rows,
    verdict,
    worst_classes,
)
from finetune_trainer.evaluate.records import ModelMetrics, RegressionResult
from finetune_trainer.evaluate.significance import PairedTest
from finetune_trainer.tasks.metrics import classification_metrics

LABELS = ("ai", "food", "sport", "never")


def test_a_significant_improvement_is_better(report_inputs):
    result = verdict(report_inputs().record)
    assert result.level is Level.BETTER
    assert result.headline == "Accuracy 3.3 % → 87.6 %"
    assert result.change == "+84.2 points"
    assert result.sentence == (
        "Accuracy rose from 3.3 % to 87.6 % on 209 held-out examples (95 % interval 82.4 % to 91.4 %). The "
        "difference is statistically significant (177 examples improved and 1 got worse; McNemar, exact: p < 0.001)."
    )


def test_a_language_model_is_evaluated_by_its_perplexity(report_inputs):
    result = verdict(report_inputs(Task.CAUSAL_LM).record)
    assert result.level is Level.BETTER
    assert result.headline.startswith("Perplexity 24")
    assert result.change.startswith("-")
    assert "Perplexity fell from" in result.sentence
    assert "120 held-out examples (4,310 tokens)" in result.sentence


def test_the_verdict_is_about_the_headline_of_the_record(report_inputs):
    record = report_inputs().record
    figures = [
        model.model_copy(update={"metrics": model.metrics | {Metric.ENTITY_F1: f1}, "intervals": {}})
        for model, f1 in ((record.baseline, 0.02), (record.tuned, 0.8))
    ]
    changed = {
        "headline": Metric.ENTITY_F1,
        "baseline": figures[0],
        "tuned": figures[1],
        "comparison": compare(*figures),
    }
    said = verdict(record.model_copy(update=changed))
    assert (said.level, said.headline, said.change) == (Level.BETTER, "Entity F1 2.0 % → 80.0 %", "+78.0 points")
    assert said.sentence.startswith("Entity F1 rose from 2.0 % to 80.0 % on 209 held-out examples.")


@pytest.mark.parametrize(
    ("better", "worse", "p_value", "level", "sentence"),
    [
        (
            10,
            90,
            1e-6,
            Level.WORSE,
            "general: Perplexity rose from 37.00 to 46.50 on 120 held-out examples (4,310 tokens). The model got "
            "significantly worse (10 examples improved and 90 got worse; Sign test: p < 0.001).",
        ),
        (
            50,
            70,
            0.08,
            Level.UNCLEAR,
            "general: Perplexity rose from 37.00 to 46.50 on 120 held-out examples (4,310 tokens). The result is "
            "inconclusive (50 examples improved and 70 got worse; Sign test: p = 0.080).",
        ),
        (None, None, None, Level.UNCOMPARED, "general: Perplexity is 46.50 on 120 held-out examples (4,310 tokens)."),
    ],
)
def test_a_regression_set_says_whether_the_model_got_worse(report_inputs, better, worse, p_value, level, sentence):
    before, after = (
        ModelMetrics(metrics={Metric.PERPLEXITY: value}, examples=120, tokens=4_310, seconds=1.0)
        for value in (37.0, 46.5)
    )
    test = better and PairedTest(name="Sign test", better=better, worse=worse, same=0, p_value=p_value)
    found = RegressionResult(name="general", baseline=before if better else None, tuned=after, paired_test=test)
    record = report_inputs(Task.CAUSAL_LM).record.model_copy(update={"regression_sets": (found,)})
    (row,) = regression_rows(record)
    assert (row.level, row.sentence) == (level, sentence)


BEATEN, NOT_BEATEN, BETTER = (0.5, 90, 10, 1e-9), (0.87, 12, 9, 0.66), (0.95, 3, 20, 0.0005)


@pytest.mark.parametrize(
    ("figures", "level", "sentence"),
    [
        (BEATEN, Level.BETTER, "significantly better than"),
        (NOT_BEATEN, Level.UNCLEAR, "not significantly better than"),
        (BETTER, Level.WORSE, "significantly worse than"),
        ((0.87, 9, 12, 0.01), Level.UNCLEAR, "not significantly better than"),
    ],
)
def test_the_verdict_names_a_simple_baseline_that_the_model_does_not_clearly_beat(
    report_inputs, linear_baseline, figures, level, sentence
):
    record = report_inputs(baselines=(linear_baseline(*figures),)).record
    (row,) = baseline_rows(record)
    assert row.level is level
    assert row.comparison.startswith(f"The model is {sentence} TF-IDF with logistic regression (accuracy ")
    assert f"it is better on {figures[1]} examples and worse on {figures[2]} (McNemar, exact: p " in row.comparison
    said = verdict(record)
    assert said.level is Level.BETTER  # compared with the base model
    assert (row.comparison in said.sentence) == (level is not Level.BETTER)


def test_without_a_test_split_nothing_was_measured(report_inputs):
    result = verdict(report_inputs(tuned=False).record)
    assert result.level is Level.UNMEASURED
    assert "no test split" in result.sentence
    assert "data.test.fraction" in result.sentence


def test_without_a_baseline_the_effect_of_training_is_unknown(report_inputs):
    result = verdict(report_inputs(baseline=False).record)
    assert result.level is Level.UNCOMPARED
    assert result.headline == "Accuracy 87.6 %"
    assert "The base model was not evaluated" in result.sentence


@pytest.mark.parametrize(
    ("before", "after", "better", "worse", "p_value", "level", "words"),
    [
        (0.5, 0.7, 30, 10, 0.002, Level.BETTER, "rose from 50.0 % to 70.0 %"),
        (0.7, 0.5, 10, 30, 0.002, Level.WORSE, "The model got significantly worse"),
        (0.5, 0.52, 12, 10, 0.83, Level.UNCLEAR, "result is inconclusive (12 examples improved and 10 got worse"),
        (0.5, 0.5, 10, 10, 1.0, Level.UNCLEAR, "Accuracy stayed at 50.0 %"),
        # The mean over tokens and the count of examples may disagree; then the result is inconclusive.
        (0.5, 0.7, 10, 30, 0.002, Level.UNCLEAR, "inconclusive"),
    ],
)
def test_the_verdict_follows_metric_and_paired_test(report_inputs, before, after, better, worse, p_value, level, words):
    record = report_inputs().record
    baseline = record.baseline.model_copy(update={"metrics": {Metric.ACCURACY: before}})
    tuned = record.tuned.model_copy(update={"metrics": {Metric.ACCURACY: after}})
    test = PairedTest(name="McNemar, exact", better=better, worse=worse, same=0, p_value=p_value)
    changed = record.model_copy(
        update={"baseline": baseline, "tuned": tuned, "comparison": compare(baseline, tuned), "paired_test": test}
    )
    result = verdict(changed)
    assert result.level is level
    assert words in result.sentence


def test_worst_classes_come_first_and_unmeasured_ones_last():
    metrics = classification_metrics([0, 0, 1, 2, 0], [0, 0, 1, 1, 2], LABELS)
    assert [row.label for row in worst_classes(metrics)] == ["sport", "food", "ai", "never"]


def test_confused_pairs_are_counted_most_frequent_first():
    metrics = classification_metrics([1, 1, 0, 2, 2, 0], [0, 0, 0, 2, 1, 1], LABELS)
    pairs = [(pair.target, pair.prediction, pair.count, round(pair.share, 2)) for pair in confused_pairs(metrics)]
    assert pairs == [("ai", "food", 2, 0.67), ("food", "ai", 1, 0.5), ("food", "sport", 1, 0.5)]


@pytest.mark.parametrize(
    ("p_value", "text"), [(1e-9, "p < 0.001"), (0.0123, "p = 0.012"), (0.049, "p = 0.049"), (0.5, "p = 0.50")]
)
def test_p_values_are_rounded_as_in_papers(p_value, text):
    assert p_text(p_value) == text
