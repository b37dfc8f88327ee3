import tracemalloc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.splits import TEST, TRAIN, VALIDATION, Share, Splitter, row_keys, split_groups

TENTH = Share(0.1)


@dataclass
class Found:
    """Row numbers of each split, in key order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    too_small: tuple[str, ...]


def split(texts, labels=None, *, validation=TENTH, test=TENTH, seed=42, part=1000):
    labels = labels or [""] * len(texts)
    names = sorted(set(labels))
    codes = np.array([names.index(label) for label in labels], dtype=np.int64)
    order = np.argsort(row_keys(texts, seed), kind="stable")
    parts = [codes[order[start : start + part]] for start in range(0, len(order), part)]
    sizes = np.bincount(codes, minlength=len(names))
    splitter = Splitter(sizes, lambda: parts, validation=validation, test=test)
    assigned = np.concatenate([np.zeros(0, dtype=np.int8), *map(splitter.assign, parts)])
    found = [order[assigned == code] for code in (TRAIN, VALIDATION, TEST)]
    assert [len(rows) for rows in found] == [splitter.counts[code] for code in (TRAIN, VALIDATION, TEST)]
    return Found(*found, tuple(names[label] for label in splitter.too_small))


@given(
    rows=st.lists(st.tuples(st.text(max_size=3), st.sampled_from("abc")), max_size=60),
    fractions=st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.45]), st.sampled_from([0.0, 0.1, 0.5])),
    stratify=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_every_row_is_in_exactly_one_split(rows, fractions, stratify, seed):
    shares = [Share(fraction, flag) for fraction, flag in zip(fractions, stratify, strict=True)]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    found = split(texts, labels, validation=shares[0], test=shares[1], seed=seed)
    for part in (1, 7):
        in_parts = split(texts, labels, validation=shares[0], test=shares[1], seed=seed, part=part)
        for name in ("train", "validation", "test"):
            assert getattr(in_parts, name).tolist() == getattr(found, name).tolist()
    everything = np.concatenate([found.train, found.validation, found.test])
    assert sorted(everything.tolist()) == list(range(len(rows)))
    if rows:
        assert len(found.train)


def test_the_split_depends_on_the_content_of_rows_not_on_their_position():
    texts = [f"text {number}" for number in range(200)]
    there = split(texts)
    back = split(texts[::-1])
    for name in ("train", "validation", "test"):
        assert [texts[row] for row in getattr(there, name)] == [texts[::-1][row] for row in getattr(back, name)]
    assert (len(there.validation), len(there.test)) == (20, 20)


def test_the_split_depends_only_on_the_seed():
    texts = [f"text {number}" for number in range(200)]
    assert split(texts).test.tolist() == split(texts).test.tolist()
    assert split(texts).test.tolist() != split(texts, seed=43).test.tolist()


def test_most_held_out_rows_stay_held_out_when_rows_are_added():
    texts = [f"text {number}" for number in range(1100)]
    before = {texts[row] for row in split(texts[:1000]).test}
    after = split(texts)
    assert len(before & {texts[row] for row in after.train}) == 0
    assert len(before & {texts[row] for row in after.test}) > 80


def test_a_stratified_split_keeps_every_labels_share():
    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 3 + ["d"] * 2
    texts = [f"text {number}" for number in range(len(labels))]
    stratified = Share(0.1, stratify=True)
    found = split(texts, labels, validation=stratified, test=stratified)
    counted = {name: Counter(labels[row] for row in getattr(found, name)) for name in ("train", "validation", "test")}
    assert counted == {
        "train": {"a": 80, "b": 40, "c": 1, "d": 2},
        "validation": {"a": 10, "b": 5, "c": 1},
        "test": {"a": 10, "b": 5, "c": 1},
    }
    assert found.too_small == ("d",)


@pytest.mark.parametrize(("rows", "expected"), [(2, (2, 0, 0)), (3, (1, 1, 1)), (9, (7, 1, 1))])
def test_few_rows_are_distributed_as_far_as_possible(rows, expected):
    found = split([f"text {number}" for number in range(rows)])
    assert (len(found.train), len(found.validation), len(found.test)) == expected


def test_large_fractions_leave_a_row_for_training():
    found = split(["a", "b", "c", "d"], validation=Share(0.49), test=Share(0.5))
    assert len(found.train) >= 1
    assert len(found.validation) >= 1
    assert len(found.test) == 2


def test_no_fraction_means_no_split():
    found = split(["a", "b", "c", "d"], validation=Share(0.0), test=Share(0.5))
    assert (len(found.train), len(found.validation), len(found.test)) == (2, 0, 2)


def test_one_long_label_does_not_use_memory_in_every_row():
    labels = ["a", "b"] * 250 + ["x" * 100_000]
    texts = [f"text {number}" for number in range(len(labels))]
    tracemalloc.start()
    found = split(texts, labels, test=Share(0.1, stratify=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.too_small == ("x" * 100_000,)
    assert peak < 2**20


@given(
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=60),
    fractions=st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.45]), st.sampled_from([0.0, 0.1, 0.5])),
)
def test_groups_give_every_split_a_group_and_do_not_exceed_the_fraction_unless_every_group_does(sizes, fractions):
    validation, test = map(Share, fractions)
    rows = np.array(sizes, dtype=np.int64)
    found = split_groups(rows, validation=validation, test=test)
    assert (found == TRAIN).any()
    for code, share in ((VALIDATION, validation), (TEST, test)):
        chosen = rows[found == code]
        assert bool(len(chosen)) == (share.fraction > 0)
        if len(chosen) > 1:
            assert chosen.sum() <= rows.sum() * share.fraction + 0.5


def test_equal_groups_are_held_out_exactly():
    found = split_groups(np.full(100, 7), validation=Share(0.2), test=Share(0.1))
    assert [int((found == code).sum()) for code in (TRAIN, VALIDATION, TEST)] == [70, 20, 10]
