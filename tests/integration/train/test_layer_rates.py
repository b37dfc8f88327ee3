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
    through = harness.config(f"layers-through-{zero}", **blocks)
    whole = harness.run(through)
    assert whole.exit_codes == [0, 0], whole.output
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

    saves = {"checkpoint": {"everySteps": 1}}
    killed = harness.run(harness.config(f"layers-{zero}", **blocks, **saves), TEST_END="kill", TEST_END_STEP="3")
    assert killed.exit_codes == [-9, -9]
    config = harness.config(f"layers-{zero}", attempt=2, **blocks, **saves)
    last = harness.run(config)
    assert last.exit_codes == [0, 0], last.output
    assert harness.training_log(config) == harness.training_log(through)
    assert last.message.trained is not None
    assert whole.message.trained is not None
    assert last.message.trained.digest == whole.message.trained.digest


def test_a_run_continues_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    through = harness.config("layers-one", kind="llama", **DECAY)
    assert harness.run(through).exit_codes == [0, 0]
    first = harness.config("layers-moved", kind="llama", zero=3, **DECAY)
    assert harness.run(first, TEST_END="stop", TEST_END_STEP="4").exit_codes == [75, 75]
    config = harness.config("layers-moved", kind="llama", attempt=2, world=1, zero=1, **DECAY)
    last = harness.run(config)
    assert last.exit_codes == [0], last.output
    assert harness.losses(config) == pytest.approx(harness.losses(through), rel=1e-4)
