"""Parts of the training loop that need no engine."""

import pytest
import torch

from finetune_trainer.train.loop import is_finite


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0, 3e38], True),
        ([1.0, float("nan"), 2.0], False),
        ([1.0, float("inf"), 2.0], False),
        ([1.0, float("-inf"), float("nan")], False),
        ([], True),
    ],
    ids=["finite", "NaN", "infinite", "both", "this rank has no values"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_is_found(values: list[float], finite: bool, dtype: torch.dtype) -> None:
    scaled = [min(value, 1e4) if value < float("inf") else value for value in values]  # the range of half precision
    assert is_finite(torch.tensor(scaled, dtype=dtype)) is finite
