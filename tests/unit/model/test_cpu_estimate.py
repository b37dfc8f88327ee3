"""The estimate for a process on the CPU, compared with peaks that `benchmarks/plan.py` has measured."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype, Offload
from finetune_trainer.model.cpu_estimate import LOWEST, MARGIN, process_bytes, process_memory
from finetune_trainer.model.estimate import TrainingShape
from finetune_trainer.model.inspect import ModelFacts

MIB = 2**20


def shape(
    model_type: str, sizes: tuple[int, int, int, int], parameters: int, *, tokens: tuple[int, int], **changes: Any
) -> TrainingShape:
    """A full fine-tune. `sizes`: vocabulary, hidden size, layers, width of the MLP; `tokens`: rows, tokens of a row."""
    vocabulary, hidden, layers, intermediate = sizes
    facts = ModelFacts(
        model_type=model_type,
        is_decoder=model_type == "llama",
        is_encoder_decoder=False,
        parameters=parameters,
        largest_parameter=vocabulary * hidden,
        linear=(),
        hidden_size=hidden,
        layers=layers,
        vocabulary=vocabulary,
        positions=1024,
        key_value_size=hidden,
        attention_size=hidden,
        intermediate_size=intermediate,
        heads_with_dropout=0 if model_type == "llama" else hidden // 64,
    )
    usual = TrainingShape(
        facts=facts,
        has_token_logits=model_type == "llama",
        dtype=Dtype.FLOAT32,
        method="full",
        trained=parameters,
        added=0,
        nodes=1,
        processes_per_node=1,
        micro_batch=tokens[0],
        global_batch=tokens[0],
        length=tokens[1],
        gradient_checkpointing=True,
    )
    return replace(usual, **changes)


SMALL_BERT = ("bert", (16_384, 320, 9, 1280), 16_771_200)
MEASURED = {
    "stage 0, activations kept": (
        0,
        shape("distilbert", (4096, 512, 2, 2048), 8_927_232, tokens=(8, 128), gradient_checkpointing=False),
        1032,
    ),
    "stage 1, 89 million parameters": (1, shape("bert", (49_152, 576, 15, 2304), 89_068_032, tokens=(2, 32)), 3713),
    "stage 1, offloaded, two micro-batches": (
        1,
        shape(*SMALL_BERT, tokens=(2, 128), offload=Offload.OPTIMIZER, gradient_checkpointing=False, global_batch=4),
        1562,
    ),
    "stage 2": (2, shape("llama", (4096, 640, 4, 1664), 21_960_320, tokens=(16, 32)), 1494),
    "stage 3, logits in 16 bit": (
        3,
        shape("llama", (49_152, 256, 8, 640), 18_616_576, tokens=(2, 512), dtype=Dtype.BFLOAT16),
        1959,
    ),
    "stage 3, two processes": (
        3,
        shape("bert", (4096, 256, 16, 1024), 14_013_696, tokens=(1, 256), nodes=2, global_batch=2),
        1187,
    ),
}
"""Name -> ZeRO stage, training, and the measured peak in MiB."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_close_to_the_measured_peak(name: str) -> None:
    stage, training, measured = MEASURED[name]
    estimate = process_memory(training, stage).total / MIB
    assert estimate == pytest.approx(measured, rel=0.07)
    demanded = process_bytes(training, stage) / MIB
    assert LOWEST / MARGIN * demanded < measured < demanded


def test_scores_of_an_attention_with_dropout_are_kept() -> None:
    """Three 32-bit matrices of each head and layer, and two more in the backward pass."""
    training = shape(*SMALL_BERT, tokens=(2, 128), gradient_checkpointing=False)
    without = replace(training, facts=replace(training.facts, heads_with_dropout=0))
    with_dropout, without_dropout = (process_memory(each, 2).activations for each in (training, without))
    assert with_dropout - without_dropout == pytest.approx(1.6 * 4 * 2 * 128**2 * 5 * (3 * 9 + 2), abs=2)


def test_an_adapter_needs_the_merged_matrices_beside_the_base_model() -> None:
    facts = replace(shape(*SMALL_BERT, tokens=(1, 32)).facts, linear=(("query.weight", (320, 320)),))
    adapter = shape(*SMALL_BERT, tokens=(1, 32), facts=facts, method="lora", trained=5120, added=5120, is_merged=True)
    assert process_memory(adapter, 2).export == 4 * 320 * 320
    assert process_memory(adapter, 3).export == 4 * (320 * 320 + facts.parameters)
    assert process_memory(replace(adapter, is_merged=False), 2).export == 0
