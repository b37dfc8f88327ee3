"""Chooses the floating-point type of a run for its devices."""

from finetune_api.v1alpha1 import Dtype

from ..errors import BadConfigError


def usable_dtype(chosen: Dtype, requested: Dtype | None, *, has_bfloat16: bool) -> Dtype:
    """Return the type to train or evaluate in: that of the prepare stage, or Float16 on a GPU without BFloat16.

    The prepare stage runs without a GPU and cannot know its type. Raises BadConfigError if the job requests BFloat16
    explicitly (`requested`, spec.model.dtype) on such a GPU.
    """
    if chosen is not Dtype.BFLOAT16 or has_bfloat16:
        return chosen
    if requested is Dtype.BFLOAT16:
        raise BadConfigError(
            "spec.model.dtype is BFloat16, which a GPU of this job cannot compute (it is older than Ampere)",
            advice="remove spec.model.dtype or set it to Float16, or choose other nodes by spec.workers.nodeSelector",
        )
    return Dtype.FLOAT16


def gpu_has_bfloat16() -> bool:
    """Whether the GPU of this process supports BFloat16 in hardware; torch's emulation is slow."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
