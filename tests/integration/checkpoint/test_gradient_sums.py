"""Gradients of 16-bit weights are summed in 32 bit, over micro-batches and over ranks."""

from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype
from gradient_sums import Kind, expected_mean, mean_gradients

KINDS = [
    Kind(stage, dtype, offload)
    for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16)
    for stage, offload in ((0, "None"), (1, "None"), (2, "None"), (3, "None"), (1, "Optimizer"), (3, "Optimizer"))
]
KINDS.append(Kind(3, Dtype.BFLOAT16, "OptimizerAndParameters"))


@pytest.mark.parametrize("size", [1, 2])
def test_many_micro_batches_with_tiny_gradients_equal_one_large_batch(run_world: Any, size: int) -> None:
    found = run_world(mean_gradients, size, kinds=KINDS)[0]
    assert found == {kind.name: pytest.approx([expected_mean(size)] * 12, rel=1e-6) for kind in KINDS}
