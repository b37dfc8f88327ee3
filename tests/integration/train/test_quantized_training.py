"""LoRA on a quantized base model: it learns as much as on the unquantized one, and moves to another world size."""

import pytest

from training_harness import TrainingHarness

LORA = {"method": {"lora": {"rank": 8}}, "training": {"epochs": 4, "learningRate": 1e-2}}
DISTANCE = 0.03
"""Accepted difference of the mean validation loss, in nats; the training lowers it by more than ten times as much."""


@pytest.fixture(scope="module")
def unquantized(harness: TrainingHarness) -> float:
    config = harness.config("unquantized", kind="bert", **LORA)
    harness.finish(config)
    assert harness.losses(config)[0] - harness.exported_loss(config) > 10 * DISTANCE
    return harness.exported_loss(config)


@pytest.mark.parametrize(
    ("quantization", "dtype", "zero"), [("NF4", "Float32", 1), ("Int8", "Float32", 0), ("NF4", "BFloat16", 2)]
)
def test_the_loss_is_close_to_that_of_an_unquantized_base_model(
    harness: TrainingHarness, unquantized: float, quantization: str, dtype: str, zero: int
) -> None:
    name = f"learns-{quantization}-{dtype}"
    blocks = {"model": {"quantization": quantization}, "dtype": dtype, "zero": zero, **LORA}
    config = harness.config(name, kind="bert", **blocks)
    harness.finish(config)
    loss = harness.exported_loss(config)
    assert loss != unquantized
    assert loss == pytest.approx(unquantized, abs=DISTANCE)


def test_a_run_continues_with_another_number_of_workers_and_another_zero_stage(harness: TrainingHarness) -> None:
    harness.check_move("quantized-moved", near=1e-3, kind="llama", model={"quantization": "NF4"}, **LORA)
