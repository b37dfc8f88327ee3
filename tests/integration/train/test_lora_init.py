"""LoRA that begins with singular vectors, over several attempts and as an export."""

import pytest
from safetensors.numpy import load, save

from training_harness import TrainingHarness

PISSA = {"method": {"lora": {"init": "PiSSA", "rank": 4}}}


def test_a_run_starts_as_the_base_model_and_continues_elsewhere_with_the_stored_values(
    harness: TrainingHarness,
) -> None:
    """The run moves from two workers with ZeRO-3 to one with ZeRO-1. The exported adapter has twice the rank."""
    one_step = {"training": {"maxSteps": 1, "epochs": None}}
    plain = harness.config("pissa-plain", kind="llama", method={"lora": {"rank": 4}}, **one_step)
    through = harness.config("pissa-through", kind="llama", zero=3, **PISSA)
    harness.finish(plain)
    harness.finish(through)
    assert harness.losses(through)[0] == pytest.approx(harness.losses(plain)[0], rel=1e-5)

    harness.interrupt(harness.config("pissa-moved", kind="llama", zero=3, **PISSA), 4, how="stop")
    config = harness.config("pissa-moved", kind="llama", attempt=2, world=1, zero=1, **PISSA)
    harness.finish(config)
    assert harness.losses(config) == pytest.approx(harness.losses(through), rel=1e-3)
    described = harness.store.get_json(f"{config.run_uri}/adapter/adapter_config.json")
    assert (described["r"], described["lora_alpha"], described["init_lora_weights"]) == (8, 16, True)


def test_another_attempt_reads_the_values_and_refuses_damaged_ones(harness: TrainingHarness) -> None:
    config = harness.config("pissa-damaged", kind="bert", **PISSA)
    harness.interrupt(config, 2, how="stop")
    uri = config.layout.initial_weights_file(harness.store.get_json(config.layout.initial_weights)["weights"])
    values = load(harness.store.get(uri))
    harness.store.put(uri, save({name: value * 2 for name, value in values.items()}))
    again = harness.run(harness.config("pissa-damaged", kind="bert", attempt=2, **PISSA))
    assert 0 not in again.exit_codes
    assert f"{uri} has not the initial weights of this run" in again.output
