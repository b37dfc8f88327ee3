"""A micro-batch that is computed in groups of similar length gives the gradients of one that is padded as a whole."""

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from finetune_api.v1alpha1 import Task
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.padding import batch_by_groups, forward_by_groups, split_by_width

LENGTHS = [9, 8, 5, 5, 3, 2, 1, 1]


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.arange(1, 9 * 8 + 1).reshape(8, 9) % 30 + 1
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": torch.arange(8) % 3}


def model() -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).train()


def gradients(trained: nn.Module, groups: int) -> dict[str, torch.Tensor]:
    rows = batch()
    task = TASKS[Task.SEQUENCE_CLASSIFICATION]
    outputs: Any = trained(**{name: rows[name] for name in task.model_inputs})
    logits = outputs if isinstance(outputs, tuple) else (outputs.logits,)
    parts = batch_by_groups(rows, logits)
    assert len(parts) == groups
    losses = [task.loss(part, of_part) for part, of_part in zip(logits, parts, strict=True)]
    torch.stack(losses).sum().div(len(LENGTHS)).backward()
    return {name: value.grad for name, value in trained.named_parameters() if value.grad is not None}


def test_groups_are_as_wide_as_their_longest_row() -> None:
    parts = split_by_width(batch(), 4)
    assert [tuple(part["input_ids"].shape) for part in parts] == [(2, 9), (2, 5), (2, 3), (2, 1)]
    assert torch.cat([part["labels"] for part in parts]).equal(batch()["labels"])
    assert sum(int(part["attention_mask"].sum()) for part in parts) == sum(LENGTHS)


def test_the_gradients_are_those_of_the_whole_micro_batch() -> None:
    plain, grouped = model(), model()
    forward_by_groups(grouped, 4)
    expected, found = gradients(plain, 1), gradients(grouped, 4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


def test_evaluation_takes_the_whole_batch() -> None:
    evaluated = model().eval()
    forward_by_groups(evaluated, 4)
    rows = batch()
    rows.pop("labels")
    assert evaluated(**rows).logits.shape == (8, 3)


def test_labels_of_a_language_model_are_cut_like_the_inputs() -> None:
    rows = {**batch(), "labels": torch.arange(8 * 9).reshape(8, 9)}
    parts = split_by_width(rows, 4)
    logits = [torch.zeros(*part["input_ids"].shape, 40) for part in parts]
    for cut, part in zip(batch_by_groups(rows, logits), parts, strict=True):
        assert cut.keys() == part.keys()
        assert all(tensor.equal(part[name]) for name, tensor in cut.items())
