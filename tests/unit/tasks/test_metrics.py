"""Metrics against tables worked out by hand."""

import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from finetune_api.v1alpha1 import Metric
from finetune_trainer.tasks.metrics import classification_metrics, perplexity

LABELS = ("ai", "food", "sport")
TARGETS = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
PREDICTIONS = [0, 0, 1, 2, 1, 1, 2, 2, 0, 2]
# By hand: ai 2 of 4 found, 3 said; food 2 of 2 found, 3 said; sport 3 of 4 found, 4 said.
BY_HAND = {
    "ai": (2 / 3, 2 / 4, 4),
    "food": (2 / 3, 2 / 2, 2),
    "sport": (3 / 4, 3 / 4, 4),
}


def harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b)


def test_per_class_figures_agree_with_the_table():
    found = {row.label: row for row in classification_metrics(PREDICTIONS, TARGETS, LABELS).per_class}
    for label, (precision, recall, support) in BY_HAND.items():
        assert found[label].precision == pytest.approx(precision)
        assert found[label].recall == pytest.approx(recall)
        assert found[label].f1 == pytest.approx(harmonic(precision, recall))
        assert found[label].support == support


@given(st.integers(1, 6).flatmap(lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1)))
def test_per_class_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predictions, targets = zip(*pairs, strict=True)
    labels = tuple(map(str, range(7)))
    found = classification_metrics(predictions, targets, labels).per_class
    expected = precision_recall_fscore_support(targets, predictions, labels=range(7), average=None, zero_division=0.0)
    for index, figures in enumerate(zip(*expected, strict=True)):
        row = found[index]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(figures)


def test_accuracy_macro_f1_and_confusion_agree_with_the_table():
    metrics = classification_metrics(PREDICTIONS, TARGETS, LABELS)
    macro = sum(harmonic(precision, recall) for precision, recall, _ in BY_HAND.values()) / 3
    assert metrics.figures == pytest.approx({Metric.ACCURACY: 0.7, Metric.MACRO_F1: macro})
    cells = {(cell.target, cell.prediction): cell.count for cell in metrics.confusion}
    assert cells == {(0, 0): 2, (0, 1): 1, (0, 2): 1, (1, 1): 2, (2, 0): 1, (2, 2): 3}
    assert [row.mistakes for row in metrics.per_class] == [3, 1, 2]
    assert metrics.count == 10


def test_a_class_that_does_not_occur_neither_helps_nor_hurts_macro_f1():
    metrics = classification_metrics([0, 1], [0, 1], ("a", "b", "never"))
    assert metrics.macro_f1 == 1.0
    assert metrics.per_class[2].support == 0


def test_a_class_that_is_never_predicted_counts_as_zero():
    metrics = classification_metrics([0, 0], [0, 1], ("a", "b"))
    assert metrics.per_class[1].f1 == 0.0
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_memory_does_not_grow_with_the_square_of_the_classes():
    targets = np.repeat(np.arange(3_000), 2)
    tracemalloc.start()
    metrics = classification_metrics(targets[::-1], targets, tuple(map(str, range(3_000))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (metrics.classes, metrics.accuracy, len(metrics.confusion)) == (3_000, 0.0, 3_000)
    assert peak < 3_000**2


def test_metrics_survive_json():
    metrics = classification_metrics(PREDICTIONS, TARGETS, LABELS)
    again = type(metrics).model_validate(json.loads(metrics.model_dump_json()))
    assert again == metrics


@pytest.mark.parametrize(
    ("predictions", "targets", "says"),
    [
        ([0, 1], [0], "one length"),
        ([], [], "at least one"),
        ([3], [0], "3 labels"),
        ([0], [-1], "3 labels"),
    ],
)
def test_what_cannot_be_compared_is_refused(predictions, targets, says):
    with pytest.raises(ValueError, match=says):
        classification_metrics(predictions, targets, LABELS)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (math.log(20), 20.0), (1e6, sys.float_info.max)])
def test_perplexity_is_the_exponential_of_the_loss(loss, expected):
    assert perplexity(loss) == pytest.approx(expected)
