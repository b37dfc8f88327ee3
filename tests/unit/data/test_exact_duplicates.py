"""What the step for exact duplicates compares, keeps and reports."""

from typing import Any

import numpy as np
import pytest

from finetune_api.v1alpha1 import BadRecordAction, Spec
from finetune_trainer.data.formats import Example
from finetune_trainer.data.pipeline import KeyedRows, Phase, Tally, optional
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.splits import TEST, TRAIN, VALIDATION
from finetune_trainer.data.steps.exact_duplicates import STEP, Parameters, key


def spec_of(cleaning: dict[str, Any]) -> Spec:
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )


def test_the_step_is_used_only_if_its_field_is_true():
    assert [step.name for step in optional(spec_of({"exactDuplicates": True}), Phase.KEYS)] == ["exact duplicates"]
    for cleaning in ({}, {"exactDuplicates": False}):
        assert optional(spec_of(cleaning), Phase.KEYS) == []


@pytest.mark.parametrize(
    ("one", "other", "are_the_same"),
    [
        (("a b",), ("a b",), True),
        (("a b",), (" a \t\r\n b\n",), True),
        (("a b",), ("a\u00a0\u3000b",), True),
        (("caf\u00e9",), ("cafe\u0301",), True),
        (("\u212b",), ("A\u030a",), True),
        (("a b",), ("A b",), False),
        (("a b",), ("ab",), False),
        (("\ufb01",), ("fi",), False),
        (("a", "b c"), ("a b", "c"), False),
        (("a\n", "b"), ("a", " b"), True),
        (("a b",), ("a", "b"), False),
    ],
)
def test_texts_are_compared_by_characters_and_words(one, other, are_the_same):
    keys = [key(Parameters(), Example("", Place("a", 1), parts=parts)) for parts in (one, other)]
    assert (keys[0] == keys[1]) == are_the_same


T, V, E = TRAIN, VALIDATION, TEST


@pytest.mark.parametrize(
    ("rows", "kept", "conflicts", "held_out"),
    [
        ([(1, 0, T)], "1", 0, 0),
        ([(1, 0, T), (1, 0, T), (2, 0, T), (2, 1, T), (2, 1, T), (3, 1, T)], "101001", 1, 0),
        ([(1, 0, T), (1, 1, T), (2, 0, T), (2, 1, T)], "1010", 2, 0),
        ([(1, 0, T), (1, 0, T), (1, 0, E), (1, 0, E)], "0011", 0, 2),
        ([(1, 1, T), (1, 0, V), (1, 1, E), (2, 0, T)], "0111", 1, 1),
        ([(1, 1, T), (1, 1, T), (1, 1, V), (1, 0, E)], "0011", 0, 2),
        ([(1, 0, V), (1, 1, V), (2, 0, E)], "111", 0, 0),
    ],
)
def test_the_first_training_record_is_kept_unless_its_text_is_held_out(rows, kept, conflicts, held_out):
    keys, labels, splits = zip(*rows, strict=True)
    keyed = KeyedRows(np.array(keys, dtype=np.uint64), np.array(labels), np.array(splits, dtype=np.int8))
    tally = Tally(BadRecords(BadRecordAction.FAIL))
    found = STEP.apply(Parameters(), keyed, tally)
    assert "".join(str(int(flag)) for flag in found) == kept
    remarks = STEP.report(tally.counts)
    assert [remark.split(".")[0] for remark in remarks] == [
        *([f"texts with different labels: {conflicts}"] if conflicts else []),
        *([f"training records whose text is held out: {held_out}"] if held_out else []),
    ]
