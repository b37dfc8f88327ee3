"""Every text of an epoch is paired with one other, and the loss is that of the similarity of their embeddings."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from finetune_trainer.data.collate import Collator
from finetune_trainer.tasks.text_pairs import PairedRows, TextPairs, paired

TASK = TextPairs()
EVEN, SKEWED, LONELY = [0, 1] * 8, [0] * 13 + [1, 2, 1], [0, 0, 0, 1, 2, 2]


@dataclass
class Rows:
    """A split in memory: the tokens of a text are its number, as many times as its length."""

    labels: list[int]
    lengths: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = np.array([3 + index % 4 for index in range(len(self.labels))], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": np.full(self.lengths[index], index + 1), "labels": self.labels[index]}


@pytest.mark.parametrize("labels", [EVEN, SKEWED, LONELY])
def test_a_text_is_paired_with_its_label_and_with_others_in_turn(labels: list[int]) -> None:
    names = np.array(labels)
    has_twin = np.array([labels.count(label) > 1 for label in labels])
    numbers = np.arange(len(labels))
    for epoch in range(20):
        others, is_same = paired(names, seed=5, epoch=epoch)
        assert (others != numbers).all()
        assert ((names[others] == names) == is_same).all()
        assert (is_same == (has_twin & ((numbers + epoch) % 2 == 0))).all()


@pytest.mark.parametrize("text", [0, 13, 14])
def test_every_text_is_as_likely_to_be_the_other_one(text: int) -> None:
    """Within 5 standard errors."""
    labels, epochs = np.array(SKEWED), 4000
    for is_same in (True, False):
        drawn = [paired(labels, seed=1, epoch=epoch) for epoch in range(epochs)]
        others = [int(found[text]) for found, same in drawn if same[text] == is_same]
        wanted = np.flatnonzero((labels == labels[text]) == is_same)
        wanted = wanted[wanted != text]
        assert sorted(set(others)) == (wanted.tolist() if others else [])
        if others:
            shares = np.bincount(others, minlength=len(labels))[wanted] / len(others)
            assert np.abs(shares - 1 / len(wanted)).max() <= 5 * (len(wanted) * len(others)) ** -0.5


def test_pairs_depend_on_nothing_but_seed_epoch_and_labels() -> None:
    labels = np.array(EVEN)
    first = paired(labels, seed=5, epoch=3)[0]
    assert (paired(labels, seed=5, epoch=3)[0] == first).all()
    assert (paired(labels, seed=5, epoch=5)[0] != first).any()
    assert (paired(labels, seed=6, epoch=3)[0] != first).any()


def test_the_loss_is_the_squared_difference_of_the_similarity_in_any_micro_batches() -> None:
    rows = TASK.training_rows(Rows(SKEWED), seed=1, epoch=0)  # type: ignore[arg-type]
    assert isinstance(rows, PairedRows)
    batch = [rows[index] for index in range(len(rows))] + [TASK.padding_row(Rows(SKEWED)[0])] * 2
    table = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def loss(part: list[dict[str, Any]]) -> float:
        collated = Collator(0, TASK)(part)
        assert {*TASK.inputs(collated)} == {"input_ids", "attention_mask"}
        assert len(collated["input_ids"]) == 2 * len(collated["labels"]) == 2 * len(part)
        return float(TASK.loss(table[collated["input_ids"][:, 0]], collated))

    expected, targets = 0.0, 0
    for row in batch[:-2]:
        first, second = (table[row[name][0]].double().numpy() for name in ("input_ids", "other_ids"))
        similarity = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        expected += (similarity - row["labels"]) ** 2
        targets += 1
    assert loss(batch) == pytest.approx(expected, rel=1e-5)
    assert sum(loss(batch[start : start + 6]) for start in range(0, 18, 6)) == pytest.approx(expected, rel=1e-5)
    assert TASK.targets(Collator(0, TASK)(batch)) == targets == len(SKEWED)
