"""The state of every optimizer is saved and restored."""

from typing import Any

import pytest

from training_harness import TrainingHarness

RADAM: dict[str, Any] = {"training": {"optimizer": {"name": "RAdam", "beta2": 0.8}, "epochs": 2, "weightDecay": 0.1}}
"""With beta2 0.8, RAdam uses the second moment from the seventh step on."""


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_killed_run_with_radam_is_bitwise_equal(harness: TrainingHarness, zero: int) -> None:
    blocks = {"kind": "bert-dropout", "zero": zero, **RADAM}
    through, plain = (
        harness.config(f"radam-through-{zero}", **blocks),
        harness.config(f"radam-adamw-{zero}", **blocks | {"training": {"epochs": 2, "weightDecay": 0.1}}),
    )
    whole = harness.run(through)
    assert whole.exit_codes == [0, 0], whole.output
    saves = {"checkpoint": {"everySteps": 1}}
    killed = harness.run(harness.config(f"radam-{zero}", **blocks, **saves), TEST_END="kill", TEST_END_STEP="4")
    assert killed.exit_codes == [-9, -9]
    config = harness.config(f"radam-{zero}", attempt=2, **blocks, **saves)
    last = harness.run(config)
    assert last.exit_codes == [0, 0], last.output
    assert harness.training_log(config) == harness.training_log(through)
    assert last.message.trained is not None
    assert whole.message.trained is not None
    assert last.message.trained.digest == whole.message.trained.digest
    if zero == 2:
        assert harness.run(plain).exit_codes == [0, 0]
        assert harness.losses(plain) != harness.losses(through)


def test_a_run_with_radam_continues_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    through = harness.config("radam-one", kind="llama", **RADAM)
    assert harness.run(through).exit_codes == [0, 0]
    first = harness.config("radam-moved", kind="llama", zero=3, **RADAM)
    assert harness.run(first, TEST_END="stop", TEST_END_STEP="4").exit_codes == [75, 75]
    config = harness.config("radam-moved", kind="llama", attempt=2, world=1, zero=1, **RADAM)
    last = harness.run(config)
    assert last.exit_codes == [0], last.output
    assert harness.losses(config) == pytest.approx(harness.losses(through), rel=1e-4)
