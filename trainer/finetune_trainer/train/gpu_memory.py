"""Compares the memory of the GPUs of an attempt with `spec.workers.gpuMemory` and the estimate. Pure."""

from finetune_api.rules import memory_fingerprint
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1.quantities import amount, gib

from ..errors import BadConfigError

_FIELD = "spec.workers.gpuMemory"

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
    if _is_estimated(config) and needed > min(present, amount(declared)):
        if is_smaller:
            raise BadConfigError(
                f"{_FIELD} must be at most {present >> 20}Mi, the memory of the smallest GPU of this job, not "
                f"{declared}; training needs about {gib(needed)} on each GPU",
                advice="set spec.workers.nodeSelector to nodes with larger GPUs; or set "
                f"{_FIELD}: {present >> 20}Mi and change spec.runNonce, so that settings that fit are chosen",
            )
        raise BadConfigError(
            f"{_FIELD} must be at least {-(-needed // 2**30)}Gi for the settings of this run, not {declared} (it was "
            "changed after the prepare stage)",
            advice="change spec.runNonce, so that settings that fit are chosen; or set spec.training.microBatchSize, "
            "spec.deepspeed.zeroStage or spec.deepspeed.offload",
        )
    if not is_smaller or present >= _EQUAL * amount(declared):
        return ""
    return f"the smallest GPU of this job has {gib(present)}; the estimate assumed {declared} ({_FIELD})"


def _is_estimated(config: PreparedConfig) -> bool:
    """Whether the estimate of the prepare stage is for the settings of this attempt."""
    fitting = config.prepared.micro_batch_limit
    if fitting is not None and config.batch.micro_size > fitting:
        return False
    planned = config.plan.micro_batch_limit if config.plan else None
    return config.prepared.memory_fingerprint == memory_fingerprint(config.spec) and planned in (None, fitting)
