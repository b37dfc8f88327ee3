"""Compares the memory of the GPUs of an attempt with `spec.workers.gpuMemory` and the estimate. Pure."""

from finetune_api.rules import memory_settings
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1.quantities import amount

from ..errors import BadConfigError

_EQUAL = 0.98
"""A GPU whose memory is at least this share of the declared one is not reported: the driver keeps some of it."""


def check_gpu_memory(config: PreparedConfig, present: int) -> str:
    """Return a warning if a GPU is smaller than `spec.workers.gpuMemory`; empty: it is not.

    `present` is the memory of the smallest GPU of the job in bytes. Raises BadConfigError if the estimate does not fit
    it.
    """
    spec, prepared = config.spec, config.prepared
    declared = spec.workers.gpu_memory
    if not config.world.gpus or declared is None or present >= amount(declared):
        return ""
    found = f"a GPU of this job has {_gib(present)}, but spec.workers.gpuMemory is {declared}"
    is_current = prepared.memory_settings == memory_settings(spec)
    if is_current and prepared.memory_estimate_bytes > present:
        raise BadConfigError(
            f"{found}, and training needs about {_gib(prepared.memory_estimate_bytes)} on each GPU",
            advice=f"select nodes with such GPUs by spec.workers.nodeSelector; or set spec.workers.gpuMemory: "
            f"{present >> 20}Mi and change spec.runNonce, so that settings that fit are chosen",
        )
    return "" if present >= _EQUAL * amount(declared) else f"{found}; the memory of the training was planned for that"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
