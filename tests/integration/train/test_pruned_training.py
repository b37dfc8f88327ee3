"""Pruned weights are zero in the exported model, at every ZeRO stage, and dropped layers are not in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_api.exit_codes import ExitCode
from finetune_api.trainer_config import TrainerConfig
from training_harness import Attempt, TrainingHarness

SPARSITY = 0.4
LAYERS = {"llama": "model.layers.", "bert-dropout": "bert.encoder.layer."}


def pruning(algorithm: str, **settings: Any) -> dict[str, Any]:
    return {"method": {"full": {"pruning": {"algorithm": algorithm, **settings}}}}


def completed(harness: TrainingHarness, config: TrainerConfig, **env: str) -> Attempt:
    attempt = harness.run(config, **env)
    assert set(attempt.exit_codes) == {0}, attempt.output
    return attempt


def tensors(harness: TrainingHarness, config: TrainerConfig, folder: Path) -> dict[str, Any]:
    harness.store.download_folder(config.model_uri, folder)
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def base_tensors(harness: TrainingHarness, kind: str) -> dict[str, Any]:
    """Under the names of the trained model."""
    prefix = "" if kind == "llama" else "bert."
    base: dict[str, Any] = load_file(harness.models / kind / "model.safetensors")
    return {prefix + name: value for name, value in base.items()}


def is_pruned(name: str, kind: str) -> bool:
    return name.startswith(LAYERS[kind]) and name.endswith("weight") and "norm" not in name.lower()


CASES = [
    (0, "Wanda", "llama"),
    (1, "Magnitude", "bert-dropout"),
    (2, "Magnitude", "llama"),
    (2, "Wanda", "bert-dropout"),
    (3, "Magnitude", "bert-dropout"),
    (3, "Wanda", "llama"),
]


@pytest.mark.parametrize(("zero", "algorithm", "kind"), CASES)
def test_pruned_weights_are_zero_after_training_and_all_others_are_trained(
    harness: TrainingHarness, tmp_path: Path, zero: int, algorithm: str, kind: str
) -> None:
    blocks = pruning(algorithm, sparsity=SPARSITY) | {"training": {"weightDecay": 0.1}}
    config = harness.config(f"pruned-{zero}-{algorithm.lower()}-{kind}", kind=kind, zero=zero, **blocks)
    completed(harness, config)
    exported, base = tensors(harness, config, tmp_path), base_tensors(harness, kind)
    for name, value in base.items():
        zeros = exported[name] == 0
        if not is_pruned(name, kind):
            assert not np.array_equal(exported[name], value), name
            continue
        assert not np.any(exported[name][~zeros] == value[~zeros]), name
        if algorithm == "Magnitude":
            smallest = np.sort(np.abs(value), axis=None)[: round(SPARSITY * value.size)]
            assert np.array_equal(np.sort(np.abs(value[zeros])), smallest), name
        else:
            assert {*zeros.sum(axis=1).tolist()} == {round(SPARSITY * value.shape[1])}, name
    record = harness.store.get_json(config.layout.pruning)
    pruned = [exported[name] for name in base if is_pruned(name, kind)]
    assert sum(entry["zeros"] for entry in record["kinds"]) == sum(int((value == 0).sum()) for value in pruned)
    assert sum(entry["weights"] for entry in record["kinds"]) == sum(value.size for value in pruned)


def test_attempts_with_other_workers_and_zero_stages_use_the_stored_masks(
    harness: TrainingHarness, tmp_path: Path
) -> None:
    """The masks are exchanged for others before the first step, so that masks that are chosen again would differ."""
    other = harness.config("masks-other", kind="llama", **pruning("Wanda", sparsity=0.6))
    completed(harness, other)
    moved = harness.config("masks-moved", kind="llama", **pruning("Wanda", sparsity=0.3))
    record = harness.store.get_json(other.layout.pruning)
    harness.store.copy(other.layout.pruning, moved.layout.pruning)
    harness.store.copy(other.layout.pruning_masks(record["masks"]), moved.layout.pruning_masks(record["masks"]))
    assert harness.run(moved, TEST_END="stop", TEST_END_STEP="3").exit_codes == [75, 75]
    again = harness.config("masks-moved", kind="llama", attempt=2, world=1, zero=3, **pruning("Wanda", sparsity=0.3))
    last = completed(harness, again)
    assert last.message.progress is not None
    assert (last.message.progress.resumed_from_step or 0) >= 3
    found, wanted = (tensors(harness, config, tmp_path / config.job.name) for config in (again, other))
    assert all(np.array_equal(found[name] == 0, wanted[name] == 0) for name in wanted)
    assert harness.losses(again) == pytest.approx(harness.losses(other), rel=1e-4)


def test_damaged_masks_are_refused(harness: TrainingHarness) -> None:
    config = harness.config("masks-damaged", kind="llama", **pruning("Magnitude", sparsity=0.3))
    assert harness.run(config, TEST_END="stop", TEST_END_STEP="1").exit_codes == [75, 75]
    uri = config.layout.pruning_masks(harness.store.get_json(config.layout.pruning)["masks"])
    content = bytearray(harness.store.get(uri))
    content[-1] ^= 1
    harness.store.put(uri, bytes(content))
    again = harness.config("masks-damaged", kind="llama", attempt=2, **pruning("Magnitude", sparsity=0.3))
    failed = harness.run(again)
    assert failed.exit_codes == [ExitCode.MODEL_UNUSABLE] * 2
    assert "its SHA-256 is not the one in pruning.json" in failed.message.error


@pytest.mark.parametrize(("zero", "kind"), [(1, "llama"), (2, "bert-dropout"), (3, "llama")])
def test_the_export_without_dropped_layers_loads_by_itself(
    harness: TrainingHarness, tmp_path: Path, zero: int, kind: str
) -> None:
    config = harness.config(f"dropped-{zero}-{kind}", kind=kind, zero=zero, **pruning("DropLayers", layers=1))
    completed(harness, config)
    loaded = harness.loaded(config, tmp_path)
    assert (loaded["missing"], loaded["unexpected"]) == ([], [])
    assert loaded["layers"] == 1
    assert np.mean(loaded["row_losses"]) == pytest.approx(harness.exported_loss(config), rel=1e-4)
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert {name.removeprefix(LAYERS[kind])[:2] for name in names if name.startswith(LAYERS[kind])} == {"0."}
