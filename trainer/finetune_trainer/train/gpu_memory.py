"""Compares the memory of the GPUs of an attempt with `spec.workers.gpuMemory` and the estimate. Pure."""

from finetune_api.rules import memory_fingerprint
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1.quantities import amount

from ..errors import BadConfigError

_EQUAL = 0.98
"""A GPU whose memory is at least this share of the declared one is not reported: the driver keeps some of it."""


def check_gpu_memory(config: PreparedConfig, present: int) -> str:
    """Return a warning if a GPU is smaller than `spec.workers.gpuMemory`; empty: it is not.

    `present` is the memory of the smallest GPU of the job in bytes. Raises BadConfigError if the estimate fits neither
    that nor `spec.workers.gpuMemory`, which may have been changed since the prepare stage.
    """
    declared = config.spec.workers.gpu_memory
    if not config.world.gpus or declared is None:
        return ""
    is_smaller, needed = present < amount(declared), config.prepared.memory_estimate_bytes
    found = f"a GPU of this job has {_gib(present)}, but spec.workers.gpuMemory is {declared}"
    if _is_estimated(config) and needed > min(present, amount(declared)):
        texts = (found, f"training needs about {_gib(needed)} on each GPU")
        if is_smaller:
            raise BadConfigError(
                ", and ".join(texts),
                advice="select nodes with such GPUs by spec.workers.nodeSelector; or set spec.workers.gpuMemory: "
                f"{present >> 20}Mi and change spec.runNonce, so that settings that fit are chosen",
            )
        raise BadConfigError(
            f"{texts[1]}, but spec.workers.gpuMemory is {declared} since the settings were chosen",
            advice="change spec.runNonce, so that settings that fit are chosen; or set spec.training.microBatchSize, "
            "spec.deepspeed.zeroStage or spec.deepspeed.offload",
        )
    is_reported = is_smaller and present < _EQUAL * amount(declared)
    return f"{found}; the memory of the training was planned for that" if is_reported else ""


def _is_estimated(config: PreparedConfig) -> bool:
    """Whether the estimate of the prepare stage is for the settings of this attempt."""
    limits = (config.plan.micro_batch_limit if config.plan else None, config.prepared.micro_batch_limit)
    return config.prepared.memory_fingerprint == memory_fingerprint(config.spec) and limits[0] in (None, limits[1])


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
