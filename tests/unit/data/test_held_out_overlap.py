"""Which training records the step `test overlap` removes."""

import random
import resource
import time
from collections import Counter
from typing import Any

import pytest

from feature_rows import removed_rows
from finetune_api.v1alpha1 import Spec
from finetune_trainer.data import comparison
from finetune_trainer.data.pipeline import COMPARED, REMOVED
from finetune_trainer.data.steps import held_out_overlap

SPEC = Spec.model_validate(
    {
        "model": {"uri": "s3://bucket/model"},
        "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "cleaning": {"testOverlap": True}},
        "training": {"learningRate": 1e-3},
        "output": {"uri": "s3://bucket/out"},
    }
)


def text(first: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(first, first + count))


JAPANESE = "\u6771\u4eac\u306e\u5929\u6c17\u306f\u6674\u308c\u3067\u3059"
TEMPLATE = " ".join(f"rule{number}" for number in range(20))


@pytest.mark.parametrize(
    ("train", "held_out", "removed"),
    [
        ([text(0, 30)], [text(17, 40)], [0]),
        ([text(0, 29)], [text(17, 40)], []),
        ([f"x {text(0, 8)} y"], [text(0, 8)], [0]),
        ([f"x {text(0, 7)} y", text(0, 7)], [text(0, 7)], [1]),
        ([f"x {text(0, 11)} y"], [text(0, 12)], []),
        ([f"{text(0, 5).upper()}, {text(5, 9)}!"], [text(0, 13)], [0]),
        ([text(0, 40), text(0, 40)], [], []),
        ([text(0, 40), text(50, 40)], [text(45, 30), text(20, 30)], [0, 1]),
        ([JAPANESE], [JAPANESE[1:-1]], [0]),
        ([f"{TEMPLATE} {text(0, 9)}"], [f"{TEMPLATE} {text(100 * each, 9)}" for each in range(1, 13)], []),
        ([f"{TEMPLATE} {text(0, 5)} a"], [f"{TEMPLATE} {text(100 * each, 9)}" for each in range(12)], []),
        ([f"{TEMPLATE} {text(0, 15)}"], [f"{TEMPLATE} {text(100 * each, 15)}" for each in range(12)], [0]),
        ([text(0, 30), text(0, 9), "a", f"x {text(0, 9)}"], [text(0, 30), text(0, 9), "a"] * 12, [0, 1, 2, 3]),
        ([TEMPLATE, f"{TEMPLATE} a"], [TEMPLATE, *(f"{TEMPLATE} {text(9 * each, 9)}" for each in range(12))], [0]),
        ([f"{text(0, 8)} a", f"{text(0, 12)} b"], [f"{text(0, 8)} {each}" for each in range(12)], []),
        ([f"{text(0, 8)} a", f"{text(0, 12)} b"], [f"{text(0, 8)} word{each}" for each in range(8, 14)], [1]),
        (["!", "?"], ["!"], []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_record_with_a_held_out_record_or_thirteen_words_of_one_is_removed(
    tmp_path, train: list[str], held_out: list[str], removed: list[int], blocks: Any
):
    assert removed_rows(SPEC, train, tmp_path, held_out=held_out, blocks=blocks) == removed


def removed_by_sets(train: list[str], held_out: list[str]) -> list[int]:
    """The rule of docs/data.md, by comparing all pairs."""

    def runs(words: list[str], size: int) -> list[tuple[str, ...]]:
        return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]

    tests = [list(words) for words in {tuple(text.split()) for text in held_out}]
    counts = Counter(run for words in tests for run in set(runs(words, 8)))
    common = {run for run, count in counts.items() if count > 10}
    passages = {
        run
        for words in tests
        if len(words) >= 8
        for run in runs(words, min(13, len(words)))
        if not common & set(runs(list(run), 8))
    }
    return [
        number
        for number, words in enumerate(map(str.split, train))
        if words in tests or any(passages & set(runs(words, size)) for size in range(8, 14))
    ]


def test_the_removed_records_are_those_of_a_comparison_of_all_pairs(tmp_path, monkeypatch):
    chosen = random.Random(7)

    def record() -> str:
        parts = (text(chosen.choice((0, 50, chosen.randrange(3000))), chosen.randint(1, 16)) for _ in range(3))
        return " ".join(list(parts)[: chosen.randint(1, 3)])

    train, held_out = [record() for _ in range(900)], [record() for _ in range(120)]
    expected = removed_by_sets(train, held_out)
    assert 150 < len(expected) < 800
    assert removed_rows(SPEC, train, tmp_path, held_out=held_out) == expected
    monkeypatch.setattr(comparison, "_RANGE", 700)
    monkeypatch.setattr(comparison, "_PART", 90)
    monkeypatch.setattr(held_out_overlap, "_HASHES", 500)
    for blocks in (2, 7):
        assert removed_rows(SPEC, train, tmp_path, held_out=held_out, blocks=blocks) == expected


def test_a_phrase_that_many_records_share_takes_little_time(tmp_path):
    phrase = text(0, 12)
    train = [f"{phrase} {text(1000 + 40 * number, 40)}" for number in range(4000)]
    held_out = [f"{phrase} {text(500_000 + 40 * number, 40)}" for number in range(10)]
    made: list[float] = []

    class Timed(held_out_overlap.Comparison):
        def groups(self, *arguments: Any, **named: Any) -> Any:
            made.append(time.process_time())
            return super().groups(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feature_rows.Comparison", Timed)
        assert removed_rows(SPEC, train, tmp_path, held_out=held_out) == []
    assert time.process_time() - made[0] < 1


def test_more_files_are_compared_than_a_process_may_open(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    train = [f"{text(number % 10 * 100, 20)} {number}" for number in range(295)]
    held_out = [text(number * 100, 20) for number in range(5)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        removed = removed_rows(SPEC, train, tmp_path, held_out=held_out, blocks=300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert removed == [number for number in range(295) if number % 10 < 5]


@pytest.mark.parametrize(("removed", "remarks"), [(0, 0), (100, 0), (101, 1), (1000, 1)])
def test_a_remark_says_that_many_training_records_are_removed(removed, remarks):
    found = held_out_overlap.report(Counter({COMPARED: 1000, REMOVED: removed}))
    assert len(found) == remarks
    assert all(f"({removed:,} of 1,000)" in remark and "testOverlap: false" in remark for remark in found)
    assert held_out_overlap.report(Counter()) == ()
