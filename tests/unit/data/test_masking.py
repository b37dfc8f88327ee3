"""Which tokens of a row are masked depends on the seed, the epoch and the number of the row, and on nothing else."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tiny_models
from finetune_api.trainer_config import BatchPlan
from finetune_api.v1alpha1 import Columns, DataFormat, Task
from finetune_trainer.data.formats import Example, Formatter
from finetune_trainer.data.info import Masking
from finetune_trainer.data.masking import MaskedRows, count_chosen
from finetune_trainer.data.problems import Place
from finetune_trainer.data.tokenize import special_tokens
from finetune_trainer.errors import ModelUnusableError
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.train.rows import PADDING_ROW, GlobalBatches, RowsWithPadding
from tokenized import tokenized

MASK, SPECIAL, VOCABULARY = 4, (0, 1, 2, 3, 4), 500
TASK = TASKS[Task.MASKED_LM]


@dataclass
class Rows:
    """A split in memory: every row begins and ends with a special token."""

    texts: list[npt.NDArray[np.int64]]
    masking: Masking | None = field(
        default_factory=lambda: Masking(mask_token=MASK, vocabulary=VOCABULARY, special_tokens=SPECIAL)
    )

    lengths: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = np.array([len(text) + 2 for text in self.texts], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.concatenate([[1], self.texts[index], [2]])
        return {"input_ids": ids, "labels": np.where(np.isin(ids, SPECIAL), IGNORED, ids)}

    def documents(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self))

    def units(self) -> None:
        return None


def make_rows(count: int = 40, *, longest: int = 60) -> Rows:
    draw = np.random.default_rng(3)
    return Rows([draw.integers(5, VOCABULARY, draw.integers(1, longest)) for _ in range(count)])


def contents(rows: Any) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in (rows[index] for index in range(len(rows)))]


FIRST = [
    (24, 4, 33),
    (32, 4, 41),
    (39, 4, 48),
    (40, 4, 49),
    (41, 4, 50),
    (44, 484, 53),
    (50, 382, 59),
    (51, 4, 60),
    (57, 4, 66),
]
SECOND = [
    (3, 4, 12),
    (5, 4, 14),
    (6, 4, 15),
    (9, 4, 18),
    (21, 4, 30),
    (22, 4, 31),
    (37, 4, 46),
    (41, 4, 50),
    (54, 63, 63),
]
"""Place, token and original token of the chosen places."""


def test_the_masks_of_an_epoch_are_those_of_every_other_process() -> None:
    """A change of these numbers changes the results of runs that are resumed with another version."""
    rows = Rows([np.arange(10, 70), np.arange(10, 70)])
    (first, first_labels), (second, second_labels) = contents(MaskedRows.in_epoch(rows, 7, 1))
    assert [(place, first[place], label) for place, label in enumerate(first_labels) if label != IGNORED] == FIRST
    assert [(place, second[place], label) for place, label in enumerate(second_labels) if label != IGNORED] == SECOND


def test_a_row_is_masked_the_same_among_other_rows_and_in_any_order() -> None:
    rows = make_rows()
    expected = contents(MaskedRows.in_epoch(rows, 5, 2))
    again = MaskedRows.in_epoch(rows, 5, 2)
    backwards = [again[index] for index in reversed(range(len(rows)))][::-1]
    assert [(row["input_ids"].tolist(), row["labels"].tolist()) for row in backwards] == expected
    fewer = Rows(rows.texts[:7])
    assert contents(MaskedRows.in_epoch(fewer, 5, 2)) == expected[:7]


@pytest.mark.parametrize(("seed", "epoch"), [(5, 3), (6, 2), (2, 5)])
def test_another_epoch_or_seed_masks_other_tokens(seed: int, epoch: int) -> None:
    rows = make_rows()
    assert contents(MaskedRows.in_epoch(rows, seed, epoch)) != contents(MaskedRows.in_epoch(rows, 5, 2))


def test_the_stored_rows_are_not_changed() -> None:
    rows = make_rows()
    before = contents(rows)
    contents(MaskedRows.held_out(rows))
    assert contents(rows) == before


def test_of_the_chosen_tokens_80_percent_are_masked_and_10_percent_random() -> None:
    rows = make_rows(2000)
    found: Counter[str] = Counter()
    drawn: set[int] = set()
    for index, (ids, labels) in enumerate(contents(MaskedRows.in_epoch(rows, 1, 0))):
        original = rows[index]["input_ids"].tolist()
        chosen = [place for place, label in enumerate(labels) if label != IGNORED]
        assert [labels[place] for place in chosen] == [original[place] for place in chosen]
        assert len(chosen) == count_chosen(len(original) - 2)
        assert all(ids[place] == original[place] for place in range(len(ids)) if place not in chosen)
        assert not {original[place] for place in chosen} & set(SPECIAL)
        for place in chosen:
            kind = "mask" if ids[place] == MASK else "same" if ids[place] == original[place] else "random"
            found[kind] += 1
            drawn |= {ids[place]} if kind == "random" else set()
    shares = {kind: count / found.total() for kind, count in found.items()}
    assert shares == pytest.approx({"mask": 0.8, "random": 0.1, "same": 0.1}, abs=0.015)
    assert not drawn & set(SPECIAL)
    assert len(drawn) > 0.7 * VOCABULARY
    assert max(drawn) < VOCABULARY


@pytest.mark.parametrize(("candidates", "chosen"), [(0, 0), (1, 1), (2, 1), (10, 2), (20, 3), (100, 15), (510, 77)])
def test_15_percent_of_a_row_are_predicted_and_at_least_one(candidates: int, chosen: int) -> None:
    assert count_chosen(candidates) == chosen


def test_every_place_of_a_row_is_chosen_equally_often() -> None:
    rows = Rows([np.arange(10, 20)] * 3000)
    counts = np.zeros(12)
    for index in range(len(rows)):
        counts += MaskedRows.in_epoch(rows, 1, 0)[index]["labels"] != IGNORED
    assert counts[[0, -1]].tolist() == [0, 0]
    assert counts[1:-1] / len(rows) == pytest.approx([0.2] * 10, abs=0.03)


def test_held_out_rows_have_the_same_masks_for_every_seed_and_others_than_in_training() -> None:
    rows: Any = make_rows()
    assert contents(TASK.held_out_rows(rows)) == contents(MaskedRows.held_out(rows))
    assert contents(TASK.held_out_rows(rows)) != contents(TASK.training_rows(rows, seed=0, epoch=0))


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (2, 4), (4, 1)])
def test_a_global_batch_has_the_same_masks_for_any_number_of_ranks(ranks: int, micro: int) -> None:
    rows: Any = make_rows(19)
    batch = BatchPlan(global_size=8, micro_size=micro, accumulation=8 // ranks // micro)
    batches = GlobalBatches(rows.lengths, batch, seed=3, grouped=True)
    expected = contents(MaskedRows.in_epoch(rows, 3, 1))
    dealt = RowsWithPadding(rows, Task.MASKED_LM, seed=3).in_epoch(1)
    numbers = [number for rank in range(ranks) for part in batches.micro_batches(1, rank=rank) for number in part]
    found = {number: (dealt[number]["input_ids"].tolist(), dealt[number]["labels"].tolist()) for number in numbers}
    assert set(found.pop(PADDING_ROW)[1]) == {IGNORED}
    assert sorted(number for number in numbers if number != PADDING_ROW) == list(range(19))
    assert [found[number] for number in range(19)] == expected


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.MASKED_LM])
def test_the_rows_of_other_tasks_are_the_stored_ones(task: Task) -> None:
    rows: Any = make_rows()
    assert TASKS[task].training_rows(rows, seed=1, epoch=1) is rows
    assert TASKS[task].held_out_rows(rows) is rows
    assert TASKS[task].masking(tiny_models.masked_tokenizer(), "s3://bucket/m") is None


# ---- rows of texts ----


def example(tokenizer: Any, text: str) -> Example:
    formatter = Formatter(DataFormat.TEXT, Columns(), bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    return formatter({"text": text}, Place("s3://bucket/a.jsonl", 1, "line"))


def encoded(texts: list[str], max_length: int) -> tuple[Any, list[Any], Any]:
    tokenizer = tiny_models.masked_tokenizer()
    examples = [example(tokenizer, text) for text in texts]
    rows, counts = tokenized(examples, tokenizer, Task.MASKED_LM, max_length=max_length)
    return tokenizer, rows, counts


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_becomes_rows_that_each_have_the_special_tokens(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_models.masked_tokenizer
    monkeypatch.setattr(tiny_models, "masked_tokenizer", lambda: _with_side(plain(), side))
    text = " ".join(f"word{number}" for number in range(40))
    tokenizer, rows, counts = encoded([text], 16)
    assert {len(tokens) for tokens, _ in rows[:-1]} == {16}
    assert all([tokens[0], tokens[-1]] == [1, 2] for tokens, _ in rows)
    assert np.concatenate([tokens[1:-1] for tokens, _ in rows]).tolist() == tokenizer.encode(
        text, add_special_tokens=False
    )
    assert all(loss.tolist() == [False, *[True] * (len(tokens) - 2), False] for tokens, loss in rows)
    assert (counts.truncated, counts.documents, counts.divided, counts.dropped_tokens) == (0, 1, 1, 0)


def _with_side(tokenizer: Any, side: str) -> Any:
    tokenizer.truncation_side = side
    return tokenizer


def test_special_tokens_in_a_text_are_never_predicted() -> None:
    _, rows, counts = encoded(["a <mask> dog </s> barks", "<mask><pad>"], 32)
    ((tokens, loss),) = rows
    special = special_tokens(tiny_models.masked_tokenizer())
    assert [token for token, is_target in zip(tokens.tolist(), loss, strict=True) if not is_target and token] == [
        token for token in tokens.tolist() if token in special
    ]
    assert sum(~loss) == 4
    assert (counts.without_loss, counts.dropped_tokens) == (1, 2)


def test_a_tokenizer_without_mask_token_is_refused() -> None:
    with pytest.raises(ModelUnusableError, match="the tokenizer of s3://bucket/m has no mask token"):
        TASK.masking(tiny_models.tiny_tokenizer(), "s3://bucket/m")


def test_the_mask_token_and_all_special_tokens_are_known() -> None:
    tokenizer = tiny_models.masked_tokenizer()
    masking = TASK.masking(tokenizer, "s3://bucket/m")
    assert masking is not None
    assert masking.mask_token == tokenizer.convert_tokens_to_ids("<mask>")
    assert masking.vocabulary == len(tokenizer)
    assert set(tokenizer.convert_tokens_to_ids([*tiny_models.SPECIAL_TOKENS, "<mask>"])) == {*masking.special_tokens}
