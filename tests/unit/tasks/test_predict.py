"""Forward passes in batches and in pieces give what one row at a time gives."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from finetune_api.v1alpha1 import Task
from finetune_trainer.data.collate import Collator
from finetune_trainer.tasks.causal_lm import likelihood
from finetune_trainer.tasks.forward import classify
from finetune_trainer.tasks.language import LOGITS_BYTES

VOCABULARY = 64


class Rows:
    """A split in memory."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    ).eval()


@pytest.fixture(scope="module")
def language_rows() -> Rows:
    generator = np.random.default_rng(0)
    rows = []
    for length in (3, 90, 17, 40, 5, 64):
        tokens = generator.integers(1, VOCABULARY, length)
        labels = np.where(np.arange(length) < length // 3, -100, tokens)
        rows.append({"input_ids": tokens, "labels": labels})
    rows.append({"input_ids": np.array([1, 2, 3]), "labels": np.array([-100, -100, -100])})
    return Rows(rows)


def one_by_one(model, rows: Rows) -> tuple[list[float], list[int]]:
    losses, tokens = [], []
    for row in rows.rows:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(torch.tensor(row["input_ids"])[None]).logits[0, :-1]
        wanted = labels != -100
        log_probabilities = logits[wanted].log_softmax(-1)
        losses.append(float(-log_probabilities[torch.arange(int(wanted.sum())), labels[wanted]].sum()))
        tokens.append(int(wanted.sum()))
    return losses, tokens


@pytest.mark.parametrize("room_tokens", [10_000, 100, 30, 7, 1])
def test_the_loss_is_that_of_single_rows_however_little_room_there_is(llama, language_rows, room_tokens, monkeypatch):
    monkeypatch.setitem(LOGITS_BYTES, "cpu", 4 * VOCABULARY * room_tokens)
    done: list[int] = []
    found = likelihood(llama, language_rows, Collator(0, Task.CAUSAL_LM), done.append, vocabulary=VOCABULARY)
    losses, tokens = one_by_one(llama, language_rows)
    assert found.tokens.tolist() == tokens
    assert found.losses.tolist() == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert done[-1] == len(language_rows)


def test_a_classifier_answers_in_the_order_of_the_split():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    generator = np.random.default_rng(1)
    rows = Rows(
        [
            {"input_ids": generator.integers(1, VOCABULARY, length), "labels": int(length % 3)}
            for length in (4, 30, 9, 100, 12, 3)
        ]
    )
    found = classify(model, rows, Collator(0, Task.SEQUENCE_CLASSIFICATION), lambda _: None)
    assert not model.training
    assert found.targets.tolist() == [row["labels"] for row in rows.rows]
    for index, row in enumerate(rows.rows):
        with torch.no_grad():
            logits = model(torch.tensor(row["input_ids"])[None]).logits[0]
        assert found.predictions[index] == int(logits.argmax())
        assert found.losses[index] == pytest.approx(float(-logits.log_softmax(-1)[row["labels"]]), rel=1e-4)
