"""Metrics before and after training, as rows and as text."""

import sys

import pytest

from finetune_api.comparison import compare_metrics, delta_text, metric_text, number_text
from finetune_api.v1alpha1 import Metric


@pytest.mark.parametrize(
    ("metric", "before", "after", "improved"),
    [
        (Metric.ACCURACY, 0.5, 0.75, True),
        (Metric.MACRO_F1, 0.5, 0.25, False),
        (Metric.ENTITY_F1, 0.25, 0.5, True),
        (Metric.LOSS, 2.0, 1.5, True),
        (Metric.PERPLEXITY, 8.0, 9.0, False),
        (Metric.ACCURACY, 0.5, 0.5, None),
    ],
)
def test_better_depends_on_the_metric(metric, before, after, improved):
    (row,) = compare_metrics({metric: before}, {metric: after})
    assert row.delta == after - before
    assert row.improved is improved


def test_without_a_baseline_there_is_no_change():
    (row,) = compare_metrics({}, {Metric.LOSS: 1.0})
    assert (row.baseline, row.delta, row.improved) == (None, None, None)


def test_rows_are_always_in_the_same_order():
    tuned = {Metric.MACRO_F1: 0.5, Metric.LOSS: 1.0, Metric.ACCURACY: 0.5}
    assert [row.metric for row in compare_metrics({}, tuned)] == [Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1]


@pytest.mark.parametrize(
    ("metric", "value", "text", "change"),
    [
        (Metric.ACCURACY, 0.9333, "93.3 %", "+93.3 points"),
        (Metric.ENTITY_F1, 0.5, "50.0 %", "+50.0 points"),
        (Metric.LOSS, 0.2346, "0.235", "+0.235"),
        (Metric.PERPLEXITY, 12.345, "12.35", "+12.35"),
        (Metric.PERPLEXITY, 1234.5, "1,234", "+1,234"),
        (Metric.PERPLEXITY, sys.float_info.max, "overflow (> 1e308)", "+overflow (> 1e308)"),
    ],
)
def test_metrics_are_formatted_for_people(metric, value, text, change):
    assert metric_text(metric, value) == text
    assert delta_text(metric, value) == change


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (2e-5, "2.0e-05"), (4.5678, "4.568"), (1.5e8, "1.5e+08")]
)
def test_numbers_keep_their_significant_digits(value, text):
    assert number_text(value) == text


def test_a_decrease_has_a_sign():
    assert delta_text(Metric.LOSS, -0.5) == "-0.500"
    assert delta_text(Metric.ACCURACY, -0.5) == "-50.0 points"
