"""Which training records the step `test overlap` removes."""

from typing import Any

import pytest

from feature_rows import removed_rows
from finetune_api.v1alpha1 import Spec

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
    ],
)  # fmt: skip
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_record_with_a_held_out_record_or_thirteen_words_of_one_is_removed(
    tmp_path, train: list[str], held_out: list[str], removed: list[int], blocks: Any
):
    assert removed_rows(SPEC, train, tmp_path, held_out=held_out, blocks=blocks) == removed
