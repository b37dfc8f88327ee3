"""Floating-point type of a run on the available GPUs."""

import pytest

from finetune_api.v1alpha1 import Dtype
from finetune_trainer.errors import BadConfigError
from finetune_trainer.model.precision import usable_dtype


@pytest.mark.parametrize(
    ("chosen", "requested", "has_bfloat16", "used"),
    [
        (Dtype.BFLOAT16, None, True, Dtype.BFLOAT16),
        (Dtype.BFLOAT16, None, False, Dtype.FLOAT16),
        (Dtype.FLOAT16, Dtype.FLOAT16, False, Dtype.FLOAT16),
        (Dtype.FLOAT32, None, False, Dtype.FLOAT32),
    ],
)
def test_float16_replaces_bfloat16_unless_it_was_requested(
    chosen: Dtype, requested: Dtype | None, has_bfloat16: bool, used: Dtype
) -> None:
    assert usable_dtype(chosen, requested, has_bfloat16=has_bfloat16) is used


def test_requested_bfloat16_is_rejected_with_the_fix() -> None:
    with pytest.raises(BadConfigError, match="BFloat16, which a GPU of this job cannot compute") as caught:
        usable_dtype(Dtype.BFLOAT16, Dtype.BFLOAT16, has_bfloat16=False)
    assert "Float16" in caught.value.advice
