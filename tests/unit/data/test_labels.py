"""The same label has the same name, whatever wrote the file; values that are not labels are rejected."""

from decimal import Decimal

import pytest

from finetune_trainer.data.labels import (
    MAX_CLASSES,
    canonical_names,
    check_label_column,
    label_name,
    label_names,
    unknown_label,
)
from finetune_trainer.data.problems import RecordProblem
from finetune_trainer.errors import BadDataError


def names_of(*values: object) -> list[str]:
    """Names of values as files of different types have them."""
    spellings = [label_name(value) for value in values]
    changed, _ = canonical_names(set(spellings))
    return [changed.get(spelling, spelling) for spelling in spellings]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3, 3.0, "3", "3.0", Decimal("3.00")), "3"),
        ((-1, "-1.0"), "-1"),
        ((0, "0.0", "-0.0", -0.0), "0"),
        ((True, "true", "True", "TRUE"), "true"),
        (("False", False), "false"),
        (("pos", " pos ", "pos\n"), "pos"),
        ((1.5, "1.5", " 1.5", Decimal("1.50")), "1.5"),
        ((-0.25, "-0.25", Decimal("-0.25")), "-0.25"),
        ((0.1 + 0.2, "0.30000000000000004"), "0.30000000000000004"),
        ((1e-07, "1e-07", Decimal("0.0000001")), "1e-07"),
        ((Decimal("0.10000000000000000001"), "0.10000000000000000001"), "0.10000000000000000001"),
        (("caf\u00e9", "cafe\u0301"), "caf\u00e9"),
    ],
)
def test_a_label_has_the_same_name_in_all_file_types(values, expected):
    assert names_of(*values) == [expected] * len(values)


@pytest.mark.parametrize(
    "values",
    [
        ("1.0", "1.5", "2.0"),  # grades or versions
        ("01", "1", "001"),  # codes
        ("1.50", "1.5"),
        ("1e0", "1"),
        ("A", "a"),
        ("yes", "true"),
        ("+1", "1"),
    ],
)
def test_texts_that_may_have_different_meanings_keep_their_names(values):
    assert names_of(*values) == list(values)


def test_integers_of_a_column_with_missing_values_are_integers():
    assert names_of("1.0", "2.0", "other") == ["1", "2", "other"]
    assert names_of("1.0", "1.5", 1) == ["1", "1.5", "1"]


def test_numbers_that_are_not_classes_are_rejected():
    labels = label_names(label_name(number / 7) for number in range(100))
    with pytest.raises(BadDataError, match="the 100 training records have 100 different labels"):
        check_label_column(labels, rows=100)


def test_renamed_labels_are_listed():
    changed, remarks = canonical_names({"1", "1.0", "True", "x"})
    assert changed == {"1.0": "1", "True": "true"}
    assert remarks == ("labels were renamed to the form that other file types use: '1.0' is '1', 'True' is 'true'",)


def test_similar_labels_that_stay_different_are_listed():
    changed, remarks = canonical_names({"Positive", "positive", "01", "1", "neutral"})
    assert changed == {}
    assert remarks == ("labels that look similar are different classes: '01' and '1', 'Positive' and 'positive'",)


def test_zero_has_one_name_and_fractions_with_other_zeros_at_the_end_are_listed():
    assert names_of("-0", "-0.0", "0", 0, -0.0) == ["0"] * 5
    changed, remarks = canonical_names({"1.50", "1.5", "1.1"})
    assert changed == {}  # versions: 1.10 is not 1.1
    assert remarks == ("labels that look similar are different classes: '1.5' and '1.50'",)


def test_remarks_are_short_with_thousands_of_labels():
    _, remarks = canonical_names({f"{number}.0" for number in range(5000)} | {f"0{number}" for number in range(5000)})
    assert all(len(remark) < 1024 for remark in remarks)
    assert "and 4,996 more" in remarks[0]


@pytest.mark.parametrize(
    ("value", "rule", "expected"),
    [
        (float("nan"), "missing label", "the label is empty"),
        (" \t", "missing label", "the label is empty"),
        (Decimal("nan"), "missing label", "the label is empty"),
        (float("inf"), "wrong type", "the label is float inf, but must be text or a number between -2^53 and 2^53"),
        (-float("inf"), "wrong type", "float -inf"),
        (Decimal("Infinity"), "wrong type", "Decimal Decimal('Infinity')"),
        (2.0**53, "wrong type", "float 9007199254740992.0"),
        (b"a", "wrong type", "bytes"),
        ({"a": 1}, "wrong type", "dict"),
        ("word " * 100, "label too long", "the label has 499 characters, but must have at most 256: 'word word"),
        (10**300, "label too long", "301 characters"),
        ("a\ud800", "undecodable bytes", "an unpaired surrogate"),
    ],
)
def test_a_value_that_is_not_a_label_has_a_reason(value, rule, expected):
    with pytest.raises(RecordProblem) as caught:
        label_name(value)
    assert caught.value.rule == rule
    assert expected in caught.value.what
    assert len(caught.value.what) < 300
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "2", "2", "-1"], ("-1", "2", "10")),
        (["10", "2", "x"], ("10", "2", "x")),
    ],
)
def test_label_ids_depend_only_on_the_set_of_labels(labels, expected):
    assert label_names(labels) == expected
    assert label_names(reversed(labels)) == expected


@pytest.mark.parametrize(
    ("classes", "rows", "expected"),
    [
        (21, 41, "the 41 training records have 21 different labels, so most labels occur once; the first: 'n0', 'n1'"),
        (MAX_CLASSES + 1, 10**6, "have 10,001 different labels, but a classifier can have at most 10,000 classes"),
    ],
)
def test_a_column_without_classes_is_rejected_with_a_hint(classes, rows, expected):
    with pytest.raises(BadDataError) as caught:
        check_label_column([f"n{number}" for number in range(classes)], rows)
    assert expected in str(caught.value)
    assert "set spec.data.columns.label to the column with the class names" in caught.value.advice


@pytest.mark.parametrize(("classes", "rows"), [(0, 0), (20, 20), (21, 42), (MAX_CLASSES, 2 * MAX_CLASSES)])
def test_a_column_of_classes_is_accepted(classes, rows):
    check_label_column([f"n{number}" for number in range(classes)], rows)


def test_an_unknown_label_is_reported_with_the_nearest_known_one():
    problem = unknown_label("Postive", ("negative", "neutral", "positive"))
    assert "label 'Postive' is not among the 3 labels" in problem.what
    assert "nearest is 'positive'" in problem.what


def test_an_unknown_label_without_a_similar_one_has_no_suggestion():
    assert unknown_label("7", ("negative", "positive")).what.endswith("labels of the training files")
