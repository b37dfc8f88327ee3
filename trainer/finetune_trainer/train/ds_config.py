"""Converts a PreparedConfig to DeepSpeed's configuration. Pure: no torch, no I/O."""

from collections.abc import Mapping
from typing import Any

from finetune_api.rules import effective_offload, zero_stage
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import Dtype, Offload

from ..model.zero_buffers import bucket_elements, prefetch_elements


def deepspeed_config(config: PreparedConfig, *, largest_matrix: int = 0) -> dict[str, Any]:
    """Return DeepSpeed's configuration of the train stage, with the user's `deepspeed.config` merged into it.

    `largest_matrix`: elements of the largest matrix of a layer, which stage 3 gathers ahead as a whole; 0 on the CPU.
    `optimizer` and `scheduler` are absent: `build_engine` makes them.
    """
    prepared = config.prepared
    stage = zero_stage(config.spec, prepared.zero_stage, prepared.dtype)
    kept = effective_offload(config.spec, prepared.offload, stage)
    gpus = config.world.gpus
    zero = _zero(stage, prepared.parameters, gpus=gpus, largest_matrix=largest_matrix)
    own: dict[str, Any] = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": config.batch.accumulation,
        "gradient_clipping": config.spec.training.max_grad_norm,
        **precision(prepared.dtype),
        "zero_optimization": zero | offloaded(kept, gpus=gpus),
        # torch's AdamW, which DeepSpeed classifies as untested.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }
    return _merged(own, config.spec.deepspeed.config or {})


def precision(dtype: Dtype) -> dict[str, Any]:
    """Return settings for forward and backward passes in `dtype`, with gradients summed in 32 bit.

    By default, DeepSpeed sums gradients over micro-batches and ranks in `dtype`. With the 8-bit significand of
    BFloat16, a micro-batch whose gradient is 256 times smaller than the sum so far adds nothing, and the result depends
    on the number of ranks. Float16 uses the dynamic loss scale of DeepSpeed's defaults (Micikevicius et al. 2017, arXiv
    1710.03740): a step whose gradients overflow is skipped, and the second such step in a row, and each one after it,
    halves the scale.
    """
    enabled: dict[str, Any] = {
        "bf16": {"enabled": dtype is Dtype.BFLOAT16},
        "fp16": {"enabled": dtype is Dtype.FLOAT16},
    }
    if dtype is Dtype.FLOAT32:
        return enabled
    return enabled | {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


def _zero(stage: int, parameters: int, *, gpus: bool, largest_matrix: int) -> dict[str, Any]:
    """Return the settings of a ZeRO stage. Communication is not overlapped on the CPU, which has no streams."""
    if stage == 0:
        return {"stage": 0}
    bucket = bucket_elements(parameters)
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "contiguous_gradients": gpus or stage == 3,
        "overlap_comm": gpus,
    }
    if stage < 3:
        return zero | {"allgather_bucket_size": bucket, "reduce_scatter": True}
    return zero | {
        "stage3_prefetch_bucket_size": prefetch_elements(parameters, largest_matrix),
        "stage3_param_persistence_threshold": 100_000,
        "stage3_gather_16bit_weights_on_model_save": False,
    }


def offloaded(kept: Offload, *, gpus: bool) -> dict[str, Any]:
    """Return the settings that keep state in host memory, page-locked if GPUs copy from and to it."""
    place = {"device": "cpu", "pin_memory": gpus}
    parts = {
        Offload.NONE: (),
        Offload.OPTIMIZER: ("offload_optimizer",),
        Offload.OPTIMIZER_AND_PARAMETERS: ("offload_optimizer", "offload_param"),
    }
    return {part: dict(place) for part in parts[kept]}


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `more`, merging nested objects."""
    result = dict(base)
    for key, value in more.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
