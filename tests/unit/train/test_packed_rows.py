"""A pack gives the logits, the loss and the gradients of its examples alone, for every causal architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_api.v1alpha1 import Lora, Task
from finetune_trainer.methods import METHODS
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.tasks.base import join_rows
from finetune_trainer.train.rows import PADDING_ROW, PackedRows
from tiny_models import save_tiny

LENGTHS = [9, 5, 1, 6]
FAMILIES = ["llama", "llama-tied", "gpt2", "gpt_neox", "qwen2", "gemma"]
TASK = TASKS[Task.CAUSAL_LM]


def example_rows() -> list[dict[str, Any]]:
    """Rows of which the loss falls on most tokens, also on the first one, which is not predicted."""
    draw = np.random.default_rng(5)
    rows = [{"input_ids": draw.integers(12, 300, length)} for length in LENGTHS]
    for row in rows:
        row["labels"] = np.where(draw.random(len(row["input_ids"])) < 0.8, row["input_ids"], IGNORED)
        row["labels"][0] = row["input_ids"][0]
    return rows


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("model"))


def model_of(folder: Path, *, checkpointed: bool = False, lora: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False
    with torch.no_grad():  # the attention of freshly drawn models hardly matters for their logits
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    if lora:
        model = METHODS["lora"].apply(model, Lora(rank=2), TASK, seed=1)
    if checkpointed:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def summed_loss(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    batch = TASK.collate(rows, pad_token_id=0)
    return TASK.loss(model(**TASK.inputs(batch)).logits, batch)


def gradients(model: Any, losses: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.stack(losses).sum().backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def packed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three examples in one row; the last one alone in a row that is padded."""
    return [join_rows(rows[:3]), join_rows(rows[3:])]


def test_logits_of_an_example_in_a_pack_are_those_of_the_example_alone(family: Path) -> None:
    model, rows = model_of(family).eval(), example_rows()
    with torch.no_grad():
        found = model(**TASK.inputs(TASK.collate(packed(rows), 0))).logits
        alone = [model(**TASK.inputs(TASK.collate([row], 0))).logits[0] for row in rows]
    parts = [*found[0, : sum(LENGTHS[:3])].split(LENGTHS[:3]), found[1, : LENGTHS[3]]]
    for part, expected in zip(parts, alone, strict=True):
        assert float((part - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("change", [{}, {"checkpointed": True}, {"lora": True}], ids=str)
def test_loss_and_gradients_of_a_pack_are_those_of_its_examples(family: Path, change: dict[str, bool]) -> None:
    # In 64 bit, so that the order of sums over tokens does not matter.
    one, other = model_of(family, **change).double(), model_of(family, **change).double()
    rows = example_rows()
    expected, found = [summed_loss(one, [row]) for row in rows], summed_loss(other, packed(rows))
    assert found.item() == pytest.approx(torch.stack(expected).sum().item(), rel=1e-5)
    wanted, values = gradients(one, expected), gradients(other, [found])
    assert wanted.keys() == values.keys()
    for name, gradient in wanted.items():
        assert float((values[name] - gradient).abs().max()) <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_a_pack_has_the_targets_of_its_examples() -> None:
    rows = example_rows()
    batches = [TASK.collate([row], 0) for row in rows]
    assert TASK.targets(TASK.collate(packed(rows), 0)) == sum(TASK.targets(batch) for batch in batches)


def test_positions_begin_at_zero_with_each_example_and_with_the_padding() -> None:
    rows = [{"input_ids": np.array([7, 8, 9]), "labels": np.array([7, 8, 9])}, {"input_ids": np.array([5, 6])}]
    rows[1]["labels"] = rows[1]["input_ids"]
    batch = TASK.collate([join_rows(rows), join_rows(rows[1:])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6], [5, 6, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 8, 9, -100, 6], [-100, 6, -100, -100, -100]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 2]
    assert "attention_mask" not in TASK.inputs(batch)
    assert rows[0]["labels"].tolist() == [7, 8, 9], "the rows of the dataset are not changed"


def test_a_padding_pack_has_one_token_and_no_target() -> None:
    class Rows(list[dict[str, Any]]):
        """A TokenDataset of rows in memory."""

    data: Any = Rows(example_rows())
    rows = PackedRows(data, Task.CAUSAL_LM)
    batch = TASK.collate([rows[(0, 2)], rows[(PADDING_ROW,)]], pad_token_id=0)
    assert batch["attention_mask"].sum(dim=1).tolist() == [LENGTHS[0] + LENGTHS[2], 1]
    assert TASK.targets(TASK.collate([rows[(PADDING_ROW,)]], pad_token_id=0)) == 0
