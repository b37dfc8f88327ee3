"""What the train stage chooses for GPUs: widths, validation batches, buffers and the allocator, as tables."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_trainer.allocator import CUDA_SETTINGS, use_expandable_segments
from finetune_trainer.model.zero_buffers import prefetch_elements
from finetune_trainer.train.ds_config import deepspeed_config
from finetune_trainer.train.engine import largest_matrix
from finetune_trainer.train.padding import group_widths, split_by_width, width_multiple
from finetune_trainer.train.validation import validation_batches
from train_configs import train_config

MASK = torch.tensor([[1] * length + [0] * (16 - length) for length in (16, 9, 7, 2)])


@pytest.mark.parametrize(
    ("mean_length", "max_length", "on_gpus", "multiple"),
    [
        (900.0, 4096, True, 64),
        (600.0, 4096, True, 8),  # 31.5 tokens would be more than 5 % of a row
        (900.0, 1000, True, 8),  # 1024 tokens could be more than the model has positions
        (900.0, 1001, True, 1),
        (900.0, 4096, False, 1),
    ],
)
def test_widths_are_padded_on_gpus_only(mean_length: float, max_length: int, on_gpus: bool, multiple: int) -> None:
    assert width_multiple(mean_length, max_length, on_gpus=on_gpus) == multiple


@pytest.mark.parametrize(("multiple", "widths"), [(1, [16, 7]), (8, [16, 8]), (64, [16, 16])])
def test_widths_of_groups_are_multiples_too(multiple: int, widths: list[int]) -> None:
    assert group_widths(MASK, 2, multiple) == widths
    parts = split_by_width({"attention_mask": MASK}, 2, widths)
    assert [part["attention_mask"].shape[1] for part in parts] == widths


@pytest.mark.parametrize(
    ("rows", "max_tokens", "sizes"),
    [
        (2, None, [2, 2, 2]),
        (2, 200, [2, 4]),  # 200 / 100 rows, then 200 / 40
        (1, 100, [1, 1, 2, 2]),
        (2, 100, [2, 2, 2]),  # never fewer than in the training
    ],
)
def test_a_validation_batch_has_more_rows_if_they_are_short(
    rows: int, max_tokens: int | None, sizes: list[int]
) -> None:
    lengths = np.array([50, 100, 40, 60, 30, 40], dtype=np.int32)
    batches = validation_batches(lengths, rows, max_tokens=max_tokens)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_stage_3_gathers_a_whole_projection_ahead() -> None:
    config = LlamaConfig(
        vocab_size=4000, hidden_size=8, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    # The embeddings are larger, but their rows are used one by one, or at the end.
    assert largest_matrix(LlamaForCausalLM(config)) == 8 * 24
    llama_8b = {"zero_stage": 3, "parameters": 8_030_261_248}
    ahead = {
        matrix: deepspeed_config(train_config(gpus=True, prepared=llama_8b), largest_matrix=matrix)[
            "zero_optimization"
        ]["stage3_prefetch_bucket_size"]
        for matrix in (0, 4096 * 14336)
    }
    assert ahead == {0: 5_000_000, 4096 * 14336: 4096 * 14336}
    assert prefetch_elements(8_030_261_248, 1_000) == 5_000_000


@pytest.mark.parametrize("name", CUDA_SETTINGS)
def test_segments_are_expandable_unless_the_user_has_set_the_allocator(name: str) -> None:
    untouched = {name: "max_split_size_mb:128"}
    use_expandable_segments(untouched)
    assert untouched == {name: "max_split_size_mb:128"}
    environ: dict[str, str] = {}
    use_expandable_segments(environ)
    assert environ == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
