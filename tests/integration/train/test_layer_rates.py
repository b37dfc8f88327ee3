"""Learning rates by layer: they are applied, and survive restarts with another world size and ZeRO stage."""

from typing import Any

import pytest
from safetensors.numpy import load_file

from training_harness import TrainingHarness

DECAY: dict[str, Any] = {"method": {"full": {"layerLearningRateDecay": 0.1}}}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_lower_layers_change_less_and_a_killed_run_is_bitwise_equal(
    harness: TrainingHarness, tmp_path: Any, zero: int
) -> None:
    blocks = {"kind": "bert-dropout", "zero": zero, **DECAY}
    through, _ = harness.check_resume(f"layers-{zero}", kills=[3], **blocks)
    harness.store.download_folder(through.model_uri, tmp_path)
    base, tuned = (load_file(path / "model.safetensors") for path in (harness.models / "bert-dropout", tmp_path))
    moved = [
        float(abs(tuned[f"bert.{name}"] - base[name]).mean())
        for name in (
            "embeddings.word_embeddings.weight",
            "encoder.layer.0.output.dense.weight",
            "encoder.layer.1.output.dense.weight",
        )
    ]
    assert 0 < moved[0] < moved[1] / 3 < moved[2] / 9, moved


def test_a_run_continues_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    harness.check_move("layers-moved", before=3, kind="llama", **DECAY)
