"""The floating-point type of a run on the devices that it gets."""

from finetune_api.v1alpha1 import Dtype

from ..errors import BadConfigError


def usable_dtype(chosen: Dtype, requested: Dtype | None, *, has_bfloat16: bool) -> Dtype:
    """The type to train or evaluate in: what the prepare stage chose, or Float16 on a GPU without BFloat16.

    The prepare stage runs without a GPU, so it cannot know. Raises BadConfigError where the job asks for BFloat16 by
    name (`requested`, spec.model.dtype) on such a GPU.
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
    """Whether this process's GPU computes in BFloat16 itself; torch would emulate it slowly."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
