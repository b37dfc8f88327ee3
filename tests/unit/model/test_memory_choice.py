"""Settings that are chosen so that a training fits its GPUs, and what is refused with which advice."""

import re
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype, Lora, Offload
from finetune_api.v1alpha1.quantities import gib
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.estimate import TrainingShape
from finetune_trainer.model.gpu_estimate import gpu_memory, host_bytes
from finetune_trainer.model.inspect import ModelFacts
from finetune_trainer.model.memory_choice import MemoryChoice, choose_memory_settings
from published_models import LLAMA3_8B, LLAMA3_70B

GIB = 2**30
LORA = Lora(rank=16)


def shape(
    facts: ModelFacts = LLAMA3_8B, *, lora: bool = False, nodes: int = 1, gpus: int = 8, **changes: Any
) -> TrainingShape:
    method = METHODS["lora" if lora else "full"]
    block = LORA if lora else method.block()
    trained, added = method.parameters(facts, block)
    light = METHODS["lora"].parameters(facts, LORA)
    usual = TrainingShape(
        facts=facts,
        has_token_logits=True,
        dtype=Dtype.BFLOAT16,
        method="lora" if lora else "full",
        trained=trained,
        added=added,
        lighter_methods={} if lora else {"lora": (light.trained, light.added)},
        nodes=nodes,
        processes_per_node=gpus,
        micro_batch=16,
        global_batch=128,
        length=4096,
        gradient_checkpointing=True,
        on_gpus=True,
    )
    return replace(usual, **changes)


def choose(shape: TrainingShape, limit_gib: float | None, **options: Any) -> MemoryChoice:
    limit = None if limit_gib is None else int(limit_gib * GIB)
    defaults: dict[str, Any] = {"requested": None, "offload": None, "may_reduce": True}
    return choose_memory_settings(shape, limit=limit, **defaults | options)


@pytest.mark.parametrize(
    ("training", "limit", "expected"),
    [
        # Stage, micro-batch and offload.
        pytest.param(shape(), 80, (2, 4, Offload.NONE), id="8B, 8 x 80"),
        pytest.param(shape(nodes=2), 80, (3, 8, Offload.NONE), id="8B, 16 x 80"),
        pytest.param(shape(gpus=1, micro_batch=1), 80, (2, 1, Offload.OPTIMIZER), id="8B, 1 x 80"),
        pytest.param(shape(lora=True, gpus=1), 80, (2, 8, Offload.NONE), id="8B LoRA, 1 x 80"),
        pytest.param(shape(lora=True, gpus=1, length=2048), 24, (2, 1, Offload.NONE), id="8B LoRA, 1 x 24"),
        pytest.param(shape(LLAMA3_70B, nodes=2), 80, (3, 4, Offload.OPTIMIZER), id="70B, 16 x 80"),
        pytest.param(shape(LLAMA3_70B, nodes=4), 80, (3, 2, Offload.NONE), id="70B, 32 x 80"),
        pytest.param(shape(LLAMA3_70B, lora=True), 80, (3, 4, Offload.NONE), id="70B LoRA, 8 x 80"),
    ],
)
def test_stage_micro_batch_and_offload_are_chosen_to_fit(
    training: TrainingShape, limit: int, expected: tuple[int, int, Offload]
) -> None:
    choice = choose(training, limit)
    micro = choice.micro_batch_limit or training.micro_batch
    assert (choice.stage, micro, choice.offload) == expected
    chosen = replace(training, micro_batch=micro, offload=choice.offload)
    assert choice.process_bytes == gpu_memory(chosen, choice.stage).total <= limit * GIB
    assert choice.host_bytes == host_bytes(chosen, choice.stage)
    assert f"ZeRO stage {choice.stage}: the lowest that fits the memory of a GPU" in choice.reason
    if choice.micro_batch_limit is not None:
        assert f"micro-batch {micro} instead of 16: the largest that fits the memory of a GPU" in choice.reason
    if choice.offload is not Offload.NONE:
        assert f"offload {choice.offload}: nothing else fits the memory of a GPU; a worker needs about" in choice.reason
        with pytest.raises(BadConfigError, match=r"on each GPU$") as caught:
            choose(training, limit, offload=Offload.NONE)
        assert f"set spec.deepspeed.offload: {choice.offload}" in caught.value.advice


def test_without_a_limit_the_choice_is_the_usual_one_and_says_that_nothing_was_compared() -> None:
    choice = choose(shape(), None)
    assert (choice.stage, choice.micro_batch_limit, choice.offload) == (2, None, Offload.NONE)
    assert choice.process_bytes == gpu_memory(shape(), 2).total
    assert choice.reason == (
        f"ZeRO stage 2: the default, because spec.workers.gpuMemory is absent; estimated: {gib(choice.process_bytes)} "
        "per GPU, not checked; set it to the memory of one GPU, such as 80Gi"
    )
    assert re.fullmatch(
        r"estimated: .* GiB per GPU, not checked, because spec\.workers\.gpuMemory is absent; set it to the memory of "
        r"one GPU, such as 80Gi",
        choose(shape(), None, requested=3).reason,
    )


def test_requested_settings_are_used_and_not_replaced() -> None:
    choice = choose(shape(micro_batch=4), 80, requested=3, may_reduce=False, offload=Offload.OPTIMIZER)
    assert (choice.stage, choice.offload, choice.reason) == (3, Offload.OPTIMIZER, "")
    # Stage 2 does not support offloading parameters.
    with pytest.raises(BadConfigError, match=r"gpuMemory must be at least .* for ZeRO stage 2, .*, not 80Gi;"):
        choose(shape(LLAMA3_70B), 80, requested=2)
    assert choose(shape(LLAMA3_70B), 80, host_limit=4000 * GIB).offload is not Offload.NONE


@pytest.mark.parametrize(
    ("changes", "limit", "options", "advice"),
    [
        ({"micro_batch": 1}, 40, {"requested": 2}, "set spec.deepspeed.zeroStage: 3"),
        ({"gradient_checkpointing": False, "micro_batch": 2}, 80, {}, "set spec.training.gradientCheckpointing: true"),
        (
            {"checkpoint_every": 16, "micro_batch": 2},
            80,
            {},
            "set spec.training.gradientCheckpointingEveryNLayers: ",
        ),
        ({"micro_batch": 16}, 80, {}, "set spec.training.microBatchSize: 4"),
        ({"micro_batch": 8}, 80, {"requested": 2}, "set spec.training.chunkedLoss: true"),
        ({"micro_batch": 8}, 80, {"requested": 3}, "chunkedLoss: true with spec.deepspeed.zeroStage: 2"),
        ({"micro_batch": 1, "gpus": 1}, 80, {}, "set spec.deepspeed.offload: Optimizer"),
        ({"micro_batch": 1, "gpus": 1}, 30, {}, "set spec.method.lora instead of full"),
        ({"micro_batch": 1, "gpus": 4}, 48, {"requested": 3}, "set spec.workers.nodes: 2"),
        ({"facts": LLAMA3_70B, "gpus": 1}, 24, {}, "use GPUs of at least "),
    ],
)
def test_a_training_that_cannot_fit_is_refused_with_the_closest_setting_that_does(
    changes: dict[str, Any], limit: int, options: dict[str, Any], advice: str
) -> None:
    """With the settings that the spec has, so that nothing else is chosen."""
    with pytest.raises(
        BadConfigError, match=rf"gpuMemory must be at least .*, not {limit}Gi; .* on each GPU"
    ) as caught:
        choose(shape(**changes), limit, may_reduce=False, offload=Offload.NONE, **options)
    assert advice in caught.value.advice


def test_the_host_of_a_worker_is_checked_too() -> None:
    """Eight processes load the model, and later one GPU worker keeps 12 bytes per parameter for a save."""
    needed = host_bytes(shape(), 2)
    assert choose(shape(), 80, host_limit=needed).stage == 2
    # At stage 3, the model is not loaded by every process.
    assert choose(shape(), 80, host_limit=needed - 1).stage == 3
    with pytest.raises(
        BadConfigError, match=r"limits\.memory must be at least .*, not 64Gi; .* on the host of each worker"
    ) as caught:
        choose(shape(), 80, host_limit=64 * GIB)
    assert "raise spec.workers.resources.limits.memory to" in caught.value.advice
    unchecked = choose(shape(), None, host_limit=64 * GIB)
    assert unchecked.stage == 2
    assert (
        f"more than spec.workers.resources.limits.memory allows; raise it to {-(-needed // GIB)}Gi" in unchecked.reason
    )


def test_a_model_larger_than_all_memory_of_the_job_is_refused() -> None:
    with pytest.raises(
        BadConfigError, match=r"Gi for ZeRO stage 3, offload Opt.*AndParam.*batch 1,.* on each GPU"
    ) as caught:
        choose(shape(LLAMA3_70B, gpus=1, nodes=1), 4)
    assert "use GPUs of at least" in caught.value.advice
