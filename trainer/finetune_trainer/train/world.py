"""The process group of a training, and the device and the floating-point type of its ranks."""

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.constants import Env
from finetune_api.trainer_config import PreparedConfig, TrainerConfig
from finetune_api.v1alpha1 import Dtype

from ..allocator import use_expandable_segments
from ..collectives import forget_waiting_group, open_waiting_group, sum_over_ranks
from ..deepspeed_imports import disable_shared_memory_kernel
from ..errors import BadConfigError
from ..model.precision import gpu_has_bfloat16, usable_dtype
from ..runtime import RuntimeEnv
from .gloo import use_fast_collectives

GROUP_TIMEOUT = timedelta(minutes=30)
"""Longest time that a rank waits for another one in a training step. While one rank downloads, merges or uploads a
whole model, the others wait in the group of `finetune_trainer.collectives`, which has no such limit."""


def start_process_group(config: TrainerConfig, runtime: RuntimeEnv) -> None:
    """Initialize the process group: gloo on the CPU; nccl on GPUs, and gloo for tensors on the CPU.

    DeepSpeed initializes the group, because otherwise `zero.Init` sees a world size of 1. Raises
    BadConfigError if the world size differs from the configured one, or if a GPU is missing.
    """
    if runtime.world_size != config.world.size:
        raise BadConfigError(
            f"WORLD_SIZE is {runtime.world_size}, but the configuration names {config.world.nodes} nodes of "
            f"{config.world.processes_per_node} processes",
            advice="start every worker with the environment that belongs to its configuration",
        )
    if config.world.gpus:
        _take_gpu(config, runtime)
        backend = "cpu:gloo,cuda:nccl"
    else:
        os.environ[Env.DS_ACCELERATOR] = "cpu"
        backend = "gloo"
    import deepspeed

    disable_shared_memory_kernel()
    deepspeed.init_distributed(dist_backend=backend, timeout=GROUP_TIMEOUT, verbose=False)
    open_waiting_group()
    if not config.world.gpus:
        use_fast_collectives()
        if config.prepared is not None and config.prepared.dtype is Dtype.FLOAT16:
            allow_float16_on_cpu()


def allow_float16_on_cpu() -> None:
    """Allow Float16 on any CPU. DeepSpeed requires Float16 instructions, but torch works, slowly, without them."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True


def device_of(config: TrainerConfig, runtime: RuntimeEnv) -> torch.device:
    """Return the device of this rank."""
    return torch.device("cuda", runtime.local_rank) if config.world.gpus else torch.device("cpu")


def gpu_bytes(config: TrainerConfig, runtime: RuntimeEnv) -> int:
    """Return the memory of the GPU of this rank."""
    properties: Any = torch.cuda.get_device_properties(device_of(config, runtime))
    return int(properties.total_memory)


def agreed_dtype(config: PreparedConfig) -> Dtype:
    """Return a floating-point type that the GPUs of all ranks support. Collective. Raises BadConfigError on every
    rank."""
    lacking = config.world.gpus and not gpu_has_bfloat16()
    has_bfloat16 = sum_over_ranks([float(lacking)])[0] == 0
    return usable_dtype(config.prepared.dtype, config.spec.model.dtype, has_bfloat16=has_bfloat16)


def end_process_group() -> None:
    """Destroy the group, so that the sockets of this attempt are closed before the next one starts."""
    if dist.is_initialized():
        dist.destroy_process_group()
        forget_waiting_group()


def _take_gpu(config: TrainerConfig, runtime: RuntimeEnv) -> None:
    wanted = f"spec.workers.gpusPerNode is {config.spec.workers.gpus_per_node}"
    with warnings.catch_warnings(record=True) as caught:  # torch warns if the driver is older than its CUDA
        warnings.simplefilter("always")
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if present < runtime.local_world_size:
        reasons = "".join(f": {_first_line(one.message)}" for one in caught[:1])
        raise BadConfigError(
            f"{wanted}, but the worker sees {present} GPUs{reasons}",
            advice=f"check that the node has that many {config.spec.workers.gpu_resource} and that torch in the image "
            "supports them (CUDA or ROCm), or set spec.workers.gpusPerNode to 0 to train on the CPU",
        )
    use_expandable_segments(os.environ)
    try:
        torch.cuda.set_device(runtime.local_rank)
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise BadConfigError(
            f"{wanted}, but CUDA cannot be used: {_first_line(error)}",
            advice="if the driver is too old, update it on the node, or set spec.workers.image to an image whose torch "
            f"was built for it; this one needs CUDA {torch.version.cuda}",
        ) from error


def _first_line(message: object) -> str:
    return str(message).partition("\n")[0][:300]
