"""Gradual unfreezing: parameters keep every bit until their phase, and killed runs resume exactly in any phase."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoint.archive import Archive
from finetune_trainer.checkpoint.stored.loading import Loader
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from training_harness import TrainingHarness

STEPS = 3
"""Of a phase. The models have two layers: the head, from step 4 the last layer, from step 7 everything."""
UNFREEZING: dict[str, Any] = {"stepsPerPhase": STEPS}
METHOD: dict[str, Any] = {"method": {"full": {"gradualUnfreezing": UNFREEZING}}}


def phase_of(name: str) -> int:
    """Written down once more, for the models of this test."""
    if ".0." in name or "embed" in name:
        return 2
    return 1 if ".1." in name else 0


def checkpoint(harness: TrainingHarness, config: TrainerConfig, step: int, folder: Path) -> dict[str, Any]:
    """Parameters of a checkpoint."""
    archive = Archive(harness.store, config.run_uri)
    (entry,) = (entry for entry in archive.entries() if entry.step == step)
    archive.export(entry, folder)
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def adam_steps(harness: TrainingHarness, config: TrainerConfig) -> dict[str, set[float]]:
    """Name of every parameter -> Adam's steps of its fragments in the newest checkpoint."""
    storage = RunStorage.of(harness.store, config.run_uri, attempt=9, generation=0)
    manifest = storage.catalog.read(storage.catalog.listing().names[0])
    loader = Loader(storage.blobs, manifest)
    steps: dict[str, set[float]] = {}
    for part in map(loader.part, range(manifest.world_size)):
        for fragment, count in zip(loader.layout(part).fragments, part.steps, strict=True):
            steps.setdefault(fragment.name, set()).add(count)
    return steps


@pytest.mark.parametrize(("zero", "kind"), [(0, "llama"), (1, "bert-dropout"), (2, "bert-dropout"), (3, "llama")])
def test_parameters_keep_every_bit_until_their_phase_and_a_resumed_run_is_bitwise_equal(
    harness: TrainingHarness, tmp_path: Path, zero: int, kind: str
) -> None:
    blocks = {"kind": kind, "zero": zero, **METHOD}
    blocks["training"] = {"weightDecay": 0.1}
    through = harness.config(f"unfrozen-through-{zero}", **blocks)
    whole = harness.finish(through)

    base: dict[str, Any] = load_file(harness.models / kind / "model.safetensors")
    prefix = "" if kind == "llama" else "bert."
    # Exactly at a boundary, and within a phase; the last attempt crosses the next boundary.
    for attempt, step in enumerate((STEPS, STEPS + 2), start=1):
        config = harness.config(f"unfrozen-stopped-{zero}", attempt=attempt, **blocks)
        harness.interrupt(config, step - 1, how="stop")  # noticed in the next step
        saved = checkpoint(harness, config, step, tmp_path / str(step))
        changed = {name for name, value in base.items() if not np.array_equal(value, saved[prefix + name])}
        phase = (step - 1) // STEPS
        assert changed == {name for name in base if phase_of(name) <= phase}
        assert adam_steps(harness, config) == {name: {float(max(0, step - phase_of(name) * STEPS))} for name in saved}
    config = harness.config(f"unfrozen-stopped-{zero}", attempt=3, **blocks)
    harness.check_same_result(config, harness.finish(config), through, whole)


def test_a_run_continues_across_a_boundary_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    harness.check_move("unfrozen-moved", before=3, step=STEPS - 1, kind="llama", **METHOD)


def test_a_training_that_ends_before_its_last_phase_exports_its_best_state(
    harness: TrainingHarness, tmp_path: Path
) -> None:
    """No change counts as an improvement, so that the best state is the first one and is loaded at the end."""
    config = harness.config(
        "unfrozen-short",
        kind="llama",
        method={"full": {"gradualUnfreezing": {"stepsPerPhase": 6}, "layerLearningRateDecay": 0.5}},
        evaluation={"everySteps": 1},
        training={"earlyStopping": {"metric": "Loss", "patience": 50, "minDelta": 100}},
    )
    attempt = harness.finish(config)
    trained = attempt.message.trained
    assert trained is not None
    assert (trained.best_step, trained.final_step) == (1, 12)

    base: dict[str, Any] = load_file(harness.models / "llama/model.safetensors")
    harness.store.download_folder(config.model_uri, tmp_path)
    exported = load_file(tmp_path / "model.safetensors")
    changed = {name for name, value in base.items() if not np.array_equal(value, exported[name])}
    assert changed == {name for name in base if phase_of(name) == 0}

    sizes = [sum(value.size for name, value in base.items() if phase_of(name) <= phase) for phase in (0, 1)]
    document = harness.store.get_json(config.layout.training_log)
    assert document["phases"] == [
        {"first_step": 1, "trained_parameters": sizes[0]},
        {"first_step": 7, "trained_parameters": sizes[1]},
    ]
    assert document["trained_parameters"] == sizes[1]
    assert f"phase 2 of 3, from step 7: {sizes[1]:,} parameters are trained" in attempt.output
