"""The test split for models with and without new tokens."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

import tiny_models
from finetune_api.v1alpha1 import Task
from finetune_trainer.data.base_tokens import BaseTokens, words_in
from finetune_trainer.evaluate.vocabulary_rows import RowsOfPieces, RowsWithNewTokens, count_words
from finetune_trainer.tasks import IGNORED, TASKS

TEXT = "a myocarditis and myocarditises in a (myocarditis) of the fox"


class Split:
    """Rows as a TokenDataset gives them, each a text of its own."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def documents(self) -> Any:
        return np.arange(len(self.rows))


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    tokenizer: Tokenizer = tiny_models.tiny_tokenizer().backend_tokenizer
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(base: Tokenizer) -> Tokenizer:
    extended = Tokenizer.from_str(base.to_str())
    extended.add_tokens(
        [
            AddedToken(" myocarditis", normalized=False),
            AddedToken("myocarditis", single_word=True, normalized=False),
        ]
    )
    return extended


@pytest.fixture(scope="module")
def converter(base: Tokenizer, tokenizer: Tokenizer) -> BaseTokens:
    pieces = {tokenizer.token_to_id(form): tuple(base.encode(form).ids) for form in (" myocarditis", "myocarditis")}
    return BaseTokens(base, pieces)


def row(tokenizer: Tokenizer, text: str, *, prompt: int = 0) -> dict[str, Any]:
    ids = np.array(tokenizer.encode(text).ids, dtype=np.int64)
    return {"input_ids": ids, "labels": np.where(np.arange(len(ids)) >= prompt, ids, IGNORED)}


def rows_of_pieces(made: list[dict[str, Any]], base: BaseTokens, task: Task, positions: int | None) -> RowsOfPieces:
    split: Any = Split(made)
    return RowsOfPieces(split, base, TASKS[task], positions)


@pytest.mark.parametrize("text", [TEXT, "myocarditis", "the myocarditisx myocarditis\nmyocarditis", "a fox"])
def test_the_base_model_reads_the_tokens_of_its_own_tokenizer(base, tokenizer, converter, text):
    rows = rows_of_pieces([row(tokenizer, text)], converter, Task.CAUSAL_LM, None)
    assert rows[0]["input_ids"].tolist() == base.encode(text).ids
    assert rows.lengths.tolist() == [len(base.encode(text).ids)]


def test_both_models_are_asked_for_the_same_text(base, tokenizer, converter):
    made = [row(tokenizer, TEXT), row(tokenizer, TEXT, prompt=4), row(tokenizer, "myocarditis of the fox")]
    split: Any = Split(made)
    pieces = rows_of_pieces(made, converter, Task.CAUSAL_LM, None)
    asked = [int((pieces[index]["labels"][1:] != IGNORED).sum()) for index in range(3)]
    assert RowsWithNewTokens(split, converter).units().tolist() == asked
    first, prompted, begins = (base.decode([t for t in pieces[i]["labels"].tolist() if t >= 0]) for i in range(3))
    assert (first, begins) == (TEXT[1:], " of the fox")
    assert prompted == tokenizer.decode([t for t in made[1]["labels"].tolist() if t >= 0])
    assert made[0]["labels"][0] != IGNORED  # rows of the dataset are not changed


@pytest.mark.parametrize("positions", [6, 16, 33])
def test_a_row_beyond_the_positions_is_read_in_parts_with_context(tokenizer, converter, positions):
    made = [row(tokenizer, f"{TEXT} {TEXT}"), row(tokenizer, "a fox")]
    whole = rows_of_pieces(made, converter, Task.CAUSAL_LM, None)
    parts = rows_of_pieces(made, converter, Task.CAUSAL_LM, positions)
    assert max(parts.lengths) <= positions
    assert [len(parts[index]["input_ids"]) for index in range(len(parts))] == parts.lengths.tolist()
    found = np.concatenate([parts[index]["labels"][1:] for index in range(len(parts))])
    wanted = np.concatenate([whole[index]["labels"][1:] for index in range(len(whole))])
    assert found[found != IGNORED].tolist() == wanted[wanted != IGNORED].tolist()
    assert parts.documents().tolist() == [0] * (len(parts) - 1) + [1]
    for index in range(1, len(parts) - 1):
        first = int(np.flatnonzero(parts[index]["labels"] != IGNORED)[0])
        assert first >= positions // 2


def test_texts_of_classifiers_are_truncated_before_the_last_token(tokenizer, converter):
    made = [{"input_ids": row(tokenizer, TEXT)["input_ids"], "labels": 1}]
    whole, cut = (rows_of_pieces(made, converter, Task.SEQUENCE_CLASSIFICATION, most)[0] for most in (None, 12))
    assert cut["input_ids"].tolist() == [*whole["input_ids"][:11], whole["input_ids"][-1]]
    assert cut["labels"] == 1


def test_labels_of_tokens_are_those_of_the_first_piece_and_all_are_kept(tokenizer, converter):
    ids = row(tokenizer, TEXT)["input_ids"]
    labels = np.where(np.isin(ids, list(converter.pieces)), 1, 0)
    labels[[0, -1]] = IGNORED
    made = [{"input_ids": ids, "labels": labels}]
    whole, cut = (rows_of_pieces(made, converter, Task.TOKEN_CLASSIFICATION, most)[0] for most in (None, len(ids)))
    assert len(whole["input_ids"]) > len(ids) == len(cut["input_ids"])
    for found in (whole, cut):
        assert found["labels"][found["labels"] != IGNORED].tolist() == labels[labels != IGNORED].tolist()
    assert cut["input_ids"][-1] == ids[-1]


def test_words_are_counted_without_the_first_token(tokenizer):
    assert words_in("COVID-19, a fox's  naïve_x") == 7
    made: Any = Split([row(tokenizer, TEXT)])
    assert count_words(made, SimpleNamespace(backend_tokenizer=tokenizer)) == words_in(TEXT) - 1
