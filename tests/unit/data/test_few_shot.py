"""The few-shot subset: the first usable rows of each label in key order."""

import numpy as np
import pytest

from finetune_trainer.data.few_shot import Parameters, Subset

LABELS = ("a", "b", "c", "d")
CODES = np.array([0, 1, 0, 2, 0, 1, 0, 1])
USABLE = np.ones(len(CODES), dtype=np.bool_)


def taken(subset: Subset, size: int, usable: np.ndarray = USABLE) -> list[int]:
    """Rows that are taken if they come in parts of `size`."""
    parts = [subset.take(CODES[at : at + size], usable[at : at + size]) for at in range(0, len(CODES), size)]
    return np.flatnonzero(np.concatenate(parts)).tolist()


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize(
    ("parameters", "rows"),
    [
        (Parameters(per_class=2, examples=None), [0, 1, 2, 3, 5]),
        (Parameters(per_class=1, examples=None), [0, 1, 3]),
        (Parameters(per_class=9, examples=None), list(range(8))),
        (Parameters(per_class=None, examples=3), [0, 1, 2]),
        (Parameters(per_class=None, examples=99), list(range(8))),
    ],
)
def test_the_first_rows_of_each_group_are_taken_however_they_are_divided(
    parameters: Parameters, rows: list[int], size: int
) -> None:
    subset = Subset(parameters, len(LABELS))
    assert taken(subset, size) == rows
    assert subset.left_out == len(CODES) - len(rows)


def test_rows_without_loss_do_not_count() -> None:
    usable = USABLE.copy()
    usable[[0, 1]] = False
    subset = Subset(Parameters(per_class=None, examples=3), 1)
    assert taken(subset, 2, usable) == [2, 3, 4]
    assert subset.left_out == 3


@pytest.mark.parametrize(
    ("parameters", "remark"),
    [
        (Parameters(per_class=1, examples=None), ()),
        (
            Parameters(per_class=4, examples=None),
            (
                "2 labels have fewer training records than spec.data.fewShot.perClass, 4; all of them are used: "
                "b (3), c (1)",
            ),
        ),
        (Parameters(per_class=None, examples=8), ()),
        (
            Parameters(per_class=None, examples=9),
            ("the training split has 8 examples, fewer than spec.data.fewShot.examples; all are used",),
        ),
    ],
)
def test_fewer_examples_than_asked_for_are_noted(parameters: Parameters, remark: tuple[str, ...]) -> None:
    subset = Subset(parameters, len(LABELS))
    taken(subset, 8)
    assert subset.remarks(LABELS) == remark
