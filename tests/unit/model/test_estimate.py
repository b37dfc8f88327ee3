from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Freeze, FullFineTune, Lora, OptimizerName, Quantization, Task
from finetune_trainer.data.prepare import lighter_methods
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.counts import ActivationCounts
from finetune_trainer.model.cpu_estimate import HEAP_FACTOR, process_bytes, process_memory
from finetune_trainer.model.estimate import (
    TrainingShape,
    base_bytes,
    model_state,
    quantization_note,
    snapshot_bytes,
)
from finetune_trainer.model.inspect import ModelFacts
from finetune_trainer.model.memory_choice import choose_memory_settings
from finetune_trainer.model.zero_buffers import MAX_BUCKET_ELEMENTS

GIB = 2**30
BILLION = ModelFacts(
    model_type="llama",
    is_decoder=True,
    is_encoder_decoder=False,
    parameters=10**9,
    largest_parameter=10**8,
    linear=(
        ("model.layers.0.self_attn.q_proj.weight", (2048, 2048)),
        ("model.layers.0.mlp.up_proj.weight", (6144, 2048)),
    ),
    hidden_size=0,
    layers=0,
    vocabulary=0,
    positions=2048,
)
"""No activations: only the model state of the paper remains."""
MATRICES = ((2048, 2048),) * 200 + ((2048, 1024),) * 100
QUANTIZED = 200 * 2048**2 + 100 * 2048 * 1024


def shape(*, facts: ModelFacts = BILLION, lora: Lora | None = None, **changes) -> TrainingShape:
    name, block = ("full", FullFineTune()) if lora is None else ("lora", lora)
    trained, added = METHODS[name].parameters(facts, block)
    usual = TrainingShape(
        facts=facts,
        has_token_logits=True,
        dtype=Dtype.BFLOAT16,
        method=name,
        trained=trained,
        added=added,
        lighter_methods=lighter_methods(
            facts, trained, Task.CAUSAL_LM, (ArtifactFormat.MERGED,), gradient_checkpointing=True
        ),
        nodes=64,
        processes_per_node=1,
        micro_batch=4,
        global_batch=64,
        length=1024,
        gradient_checkpointing=True,
    )
    return replace(usual, **changes)


def state_gb(stage: int, **changes) -> float:
    return sum(model_state(shape(**changes), stage)) / 1e9


def test_a_save_copies_this_process_share_of_the_trained_parameters():
    assert snapshot_bytes(shape(nodes=1)) == 12 * 10**9
    assert snapshot_bytes(shape(nodes=4, processes_per_node=2)) == 12 * 10**9 // 8
    assert snapshot_bytes(shape(lora=Lora(rank=8), nodes=2)) == 6 * 8 * (4096 + 8192)


@pytest.mark.parametrize(("stage", "expected"), [(1, 4.1875 + 2), (2, 2.21875 + 2 / 64), (3, 0.25 + 0.4 + 2 / 64)])
def test_model_state_agrees_with_the_zero_paper(stage, expected):
    """Figure 1 of the paper, for 1 billion parameters instead of 7.5: there 31.4, 16.6 and 1.9 GB (without gathering).

    Gradients take two more bytes, because they are accumulated in 32 bit.
    """
    assert state_gb(stage) == pytest.approx(expected)


@pytest.mark.parametrize(("checkpointed", "copies"), [(True, 1), (False, 24)])
def test_packs_need_their_masks(checkpointed, copies):
    """A byte for each pair of tokens, and a number of the type of the model that each layer keeps."""
    facts = replace(BILLION, layers=24, hidden_size=64)
    plain = shape(facts=facts, gradient_checkpointing=checkpointed)
    packed = process_memory(replace(plain, is_packed=True), 2)
    masks = packed.activations - process_memory(plain, 2).activations
    assert masks == 4 * 1024**2 * (1 + 2 * copies)


def test_float32_without_zero_needs_sixteen_bytes_per_parameter():
    assert state_gb(0, dtype=Dtype.FLOAT32) == pytest.approx(16.0)


def test_lora_needs_state_only_for_the_adapter():
    trained = shape(lora=Lora(rank=8)).trained
    assert trained == 8 * (4096 + 8192)
    assert shape(lora=Lora(rank=8, target_modules=("q_proj",))).trained == 8 * 4096
    assert state_gb(2, lora=Lora(rank=8)) == pytest.approx(2.0, abs=0.01)


def state_of(quantization: Quantization | None, **changes) -> int:
    here = shape(lora=Lora(rank=8), quantization=quantization, matrices=MATRICES, **changes)
    return process_memory(here, 2).total


@pytest.mark.parametrize(
    ("kind", "base", "working"),
    [
        # Half a byte, an 8-bit scale for 64 weights, a 32-bit one for 256 scales, and the tables of each matrix.
        (Quantization.NF4, QUANTIZED * (0.5 + 1 / 64 + 4 / 64 / 256) + 300 * 1088, 2 * 2**22),
        # A byte, and a 32-bit scale for each row; it is dequantized in 32 bit first.
        (Quantization.INT8, QUANTIZED + 300 * 4 * 2048, 6 * 2**22),
    ],
)
def test_quantized_matrices_need_their_values_and_scales_and_one_of_them_dequantized(kind, base, working):
    assert base_bytes(10**9, Dtype.BFLOAT16, kind, ()) == 2 * 10**9
    weights = base_bytes(10**9, Dtype.BFLOAT16, kind, MATRICES)
    assert weights == pytest.approx(2 * (10**9 - QUANTIZED) + base, abs=300)
    assert state_of(None) - state_of(kind) == 2 * 10**9 - weights - working


def test_merging_into_a_quantized_base_model_needs_all_of_it():
    without, merged = (state_of(Quantization.NF4, is_merged=value) for value in (False, True))
    assert merged - without == 2 * 10**9 - 2 * 2**22
    # Without quantization, only the matrices that the adapter changes.
    assert state_of(None, is_merged=True) - state_of(None) == 2 * (2048 * 2048 + 6144 * 2048)


def test_the_note_has_the_bytes_before_and_after():
    note = quantization_note(
        Quantization.NF4,
        dtype=Dtype.FLOAT32,
        parameters=3 * 2**20,
        quantized=2**20,
        quantized_bytes=base_bytes(3 * 2**20, Dtype.FLOAT32, Quantization.NF4, [(1024, 1024)]),
    )
    assert note == (
        "1,048,576 of 3,145,728 parameters of the base model are quantized to NF4: its weights take 8.5 MiB instead of "
        "12.0 MiB"
    )
    assert not quantization_note(None, dtype=Dtype.FLOAT32, parameters=9, quantized=0, quantized_bytes=0)


def test_frozen_parameters_need_no_optimizer_state():
    facts = replace(BILLION, frozen=4 * 10**8)
    block = FullFineTune(freeze=Freeze(embeddings=True))
    trained = METHODS["full"].parameters(facts, block).trained
    assert trained == 6 * 10**8
    assert METHODS["full"].parameters(facts, FullFineTune()).trained == 10**9
    # Gradients in 16 and 32 bit, their flat copy, fp32 copy, two moments, and the copy of all three for a save.
    whole, partly = (process_memory(shape(facts=facts, nodes=1, trained=each), 2).total for each in (10**9, trained))
    assert whole - partly == (2 + 4 + 4 + 12 + 12) * facts.frozen


@pytest.mark.parametrize(
    ("stage", "trained", "largest", "elements"),
    [
        (0, 10**9, 10**8, 10**8),
        (0, 10**6, 10**8, 10**6),
        (1, 10**9, 10**8, 10**9 // 4),
        (2, 10**9, 10**8, 10**9 // 4),
        (3, 10**6, 10**8, 10**6 // 4),
    ],
)
def test_radam_needs_twenty_bytes_for_each_element_that_it_steps_at_once(stage, trained, largest, elements):
    facts = replace(BILLION, largest_parameter=largest)
    adamw = shape(facts=facts, nodes=4, trained=trained, dtype=Dtype.FLOAT32)
    radam = replace(adamw, optimizer=OptimizerName.RADAM)
    assert process_memory(radam, stage).total - process_memory(adamw, stage).total == 20 * elements


@pytest.mark.parametrize(("checkpointed", "layers"), [(True, 1), (False, 4)])
def test_modules_of_the_method_add_to_the_activations_of_each_kept_layer(checkpointed, layers):
    plain = shape(facts=replace(BILLION, layers=4), gradient_checkpointing=checkpointed)
    adapted = replace(plain, activations=ActivationCounts(kept=4 * 500, temporary=70))
    more = process_memory(adapted, 2).total - process_memory(plain, 2).total
    assert more == pytest.approx(HEAP_FACTOR * 2 * (4 * 1024 * 500 * layers + 70), abs=1)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    facts = replace(BILLION, hidden_size=1024, layers=24, vocabulary=50_000)
    kept = process_bytes(shape(facts=facts, gradient_checkpointing=False), 2)
    assert kept > process_bytes(shape(facts=facts), 2)
    assert kept < process_bytes(shape(facts=facts, gradient_checkpointing=False, micro_batch=8), 2)


@pytest.mark.parametrize("packed", [False, True])
def test_activations_grow_with_the_layers_that_keep_them(packed):
    facts = replace(BILLION, hidden_size=1024, layers=24, vocabulary=50_000)
    plain = shape(facts=facts, activations=ActivationCounts(kept=24 * 500), is_packed=packed)
    needed = [process_bytes(replace(plain, checkpoint_every=every), 2) for every in (1, 2, 3, 24)]
    assert needed == sorted(set(needed))
    # A recomputed layer keeps its input, another one its activations, what the method adds, and its mask.
    values, tokens = 2, 4 * 1024
    of_layer = (needed[-1] - needed[0]) / 23
    assert of_layer > values * tokens * (16 * 1024 + 500) + (4 * 1024**2 * values if packed else 0)
    assert [more - needed[0] for more in needed] == pytest.approx([of_layer * kept for kept in (0, 12, 16, 23)], abs=4)
    assert process_bytes(replace(plain, gradient_checkpointing=False, checkpoint_every=3), 2) == process_bytes(
        replace(plain, gradient_checkpointing=False), 2
    )


@given(st.integers(1, 512), st.booleans())
def test_a_higher_stage_never_needs_more_except_for_gathering(nodes, lora):
    here = shape(nodes=nodes, lora=Lora() if lora else None)
    one, two, three = (process_memory(here, stage) for stage in (1, 2, 3))
    assert one.total >= two.total
    assert three.state + three.step <= two.state + two.step + 2 * BILLION.parameters + 4 * 4 * MAX_BUCKET_ELEMENTS


@pytest.mark.parametrize(
    ("limit_gib", "dtype", "expected"),
    [
        (None, Dtype.FLOAT32, 2),
        (64, Dtype.FLOAT32, 0),
        (64, Dtype.BFLOAT16, 2),
        (64, Dtype.FLOAT16, 2),
        (4.5, Dtype.BFLOAT16, 3),
    ],
)
def test_the_lowest_stage_that_fits_is_chosen_or_two_without_a_limit(limit_gib, dtype, expected):
    choice = choose_memory_settings(
        shape(dtype=dtype), requested=None, limit=None if limit_gib is None else int(limit_gib * GIB)
    )
    assert choice.stage == expected
    assert choice.process_bytes == process_bytes(shape(dtype=dtype), expected)
    assert f"stage {expected}" in choice.reason


def test_the_requested_stage_is_used_without_a_note():
    choice = choose_memory_settings(shape(), requested=3, limit=64 * GIB)
    assert (choice.stage, choice.reason) == (3, "")


@pytest.mark.parametrize("requested", [0, 1])
def test_stages_that_do_not_sum_16_bit_gradients_in_32_bit_are_raised_to_two_with_a_note(requested):
    choice = choose_memory_settings(shape(), requested=requested, limit=None)
    assert choice.stage == 2
    assert "stage 2 is used" in choice.reason


@pytest.mark.parametrize("requested", [None, 1, 3])
@pytest.mark.parametrize("fitting", [1, 2, 3, 4, 6])
def test_the_largest_micro_batch_that_fits_is_used_if_no_stage_fits(fitting, requested):
    whole = shape(facts=replace(BILLION, vocabulary=200_000), dtype=Dtype.FLOAT32, micro_batch=12)
    stages = (0, 1, 2, 3) if requested is None else (requested,)
    needed = {stage: process_bytes(replace(whole, micro_batch=fitting), stage) for stage in stages}
    limit = min(needed.values())
    choice = choose_memory_settings(whole, requested=requested, limit=limit, may_reduce=True)
    assert choice.micro_batch_limit == fitting
    assert needed[choice.stage] == choice.process_bytes == limit
    assert f"micro-batch {fitting} instead of 12" in choice.reason
    with pytest.raises(BadConfigError, match="micro-batch 12, "):
        choose_memory_settings(whole, requested=requested, limit=limit)
    assert choose_memory_settings(whole, requested=requested, limit=None, may_reduce=True).micro_batch_limit is None


@pytest.mark.parametrize(
    ("changes", "requested", "limit_gib", "advice"),
    [
        ({"nodes": 4, "dtype": Dtype.FLOAT32}, 1, 14, "set spec.deepspeed.zeroStage: 2"),
        ({"nodes": 1}, None, 8, "set spec.method.lora instead of full"),
        ({"nodes": 1}, None, 15, "set spec.workers.nodes: 4"),
        ({"nodes": 1, "facts": replace(BILLION, vocabulary=10**6)}, 1, 66, "set spec.training.microBatchSize: 2"),
        (
            {
                "nodes": 1,
                "gradient_checkpointing": False,
                "facts": replace(BILLION, hidden_size=4096, layers=80),
            },
            1,
            80,
            "set spec.training.gradientCheckpointing: true",
        ),
        ({"nodes": 1}, None, 1, "raise spec.workers.resources.limits.memory to 38Gi"),
    ],
)
def test_a_training_that_cannot_fit_is_rejected_with_the_closest_setting_that_fits(
    changes, requested, limit_gib, advice
):
    with pytest.raises(
        BadConfigError, match=rf"limits\.memory must be at least \d+Gi for .*, not {limit_gib}Gi;"
    ) as caught:
        choose_memory_settings(shape(**changes), requested=requested, limit=limit_gib * GIB)
    assert advice in caught.value.advice
    assert "raise spec.workers.resources.limits.memory to" in caught.value.advice
