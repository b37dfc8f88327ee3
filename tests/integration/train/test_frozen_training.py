"""Frozen parameters keep the values of the base model, at every ZeRO stage, and the others are trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_api.trainer_config import TrainerConfig
from training_harness import TrainingHarness

CASES: list[tuple[int, str, dict[str, Any]]] = [
    *((zero, "llama", {"embeddings": True, "firstLayers": 1}) for zero in (0, 1, 2, 3)),
    (2, "bert-dropout", {"firstLayers": 2}),
    # Only biases and norms are left, so the parameter group with weight decay is empty.
    *((zero, "llama", {"patterns": ["*proj.weight", "*embed_tokens*"]}) for zero in (1, 2, 3)),
]


def tensors(harness: TrainingHarness, config: TrainerConfig, folder: Path) -> dict[str, Any]:
    harness.store.download_folder(config.model_uri, folder)
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def is_frozen(name: str, freeze: dict[str, Any]) -> bool:
    """Written down once more, for the models of this test."""
    layers = tuple(f".{index}." for index in range(freeze.get("firstLayers", 0)))
    by_pattern = "patterns" in freeze and "norm" not in name
    return bool(freeze.get("embeddings") and "embed" in name) or by_pattern or any(part in name for part in layers)


@pytest.mark.parametrize(("zero", "kind", "freeze"), CASES)
def test_frozen_tensors_are_bitwise_those_of_the_base_model_and_the_others_are_not(
    harness: TrainingHarness, tmp_path: Path, zero: int, kind: str, freeze: dict[str, Any]
) -> None:
    name = f"frozen-{zero}-{kind}-{'-'.join(sorted(freeze)).lower()}"
    saves = {"checkpoint": {"everySteps": 1000}}
    config = harness.config(name, kind=kind, zero=zero, method={"full": {"freeze": freeze}}, **saves)
    attempt = harness.run(config)
    assert attempt.exit_codes == [0, 0], attempt.output
    exported = tensors(harness, config, tmp_path)
    base: dict[str, Any] = load_file(harness.models / kind / "model.safetensors")
    prefix = "" if kind == "llama" else "bert."
    differing = {key for key, value in base.items() if not np.array_equal(value, exported[prefix + key])}
    assert differing == {key for key in base if not is_frozen(key, freeze)}
    frozen = sum(value.size for key, value in base.items() if is_frozen(key, freeze))
    assert f"{frozen:,} are frozen" in attempt.output

    trained = sum(value.size for key, value in exported.items() if not is_frozen(key, freeze))
    (checkpoint,) = harness.manifests(config)
    stored = harness.store.get_json(f"{config.layout.manifests}/{checkpoint}.json")
    assert stored["bytes"] == 12 * trained, "parameters and moments of trained parameters only"


def test_a_frozen_run_continues_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    method = {"full": {"freeze": {"firstLayers": 1}}}
    through = harness.config("frozen-through", kind="bert", method=method)
    assert harness.run(through).exit_codes == [0, 0]
    first = harness.config("frozen-moved", kind="bert", method=method)
    assert harness.run(first, TEST_END="stop", TEST_END_STEP="3").exit_codes == [75, 75]
    config = harness.config("frozen-moved", kind="bert", method=method, attempt=2, world=1, zero=3)
    last = harness.run(config)
    assert last.exit_codes == [0], last.output
    assert harness.losses(config) == pytest.approx(harness.losses(through), rel=1e-4)
