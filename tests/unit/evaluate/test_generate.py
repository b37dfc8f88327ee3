"""Prompts are truncated to the free part of the model's context."""

from pathlib import Path
from typing import Any

import pytest

import tiny_models
from finetune_api.v1alpha1 import Dtype, Task
from finetune_trainer.evaluate.generate import answers
from finetune_trainer.model.load import load_model
from finetune_trainer.model.tokenizer import load_tokenizer


@pytest.mark.parametrize("virtual_tokens", [0, 7])
def test_a_prompt_keeps_the_end_that_fits_next_to_the_answer_and_virtual_tokens(
    tmp_path: Path, virtual_tokens: int
) -> None:
    folder = tiny_models.save_tiny("llama", tmp_path / "base")
    model: Any = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1)
    widths: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    found = answers(
        model,
        load_tokenizer(folder),
        ["the fox eats bread " * 2000],
        max_new_tokens=3,
        seed=1,
        report=lambda _: None,
        virtual_tokens=virtual_tokens,
    )
    assert len(found) == 1
    assert widths[0] == model.config.max_position_embeddings - 3 - virtual_tokens
