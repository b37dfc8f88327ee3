"""The state of every optimizer is saved and restored."""

from typing import Any

import pytest

from training_harness import TrainingHarness

RADAM: dict[str, Any] = {"training": {"optimizer": {"name": "RAdam", "beta2": 0.8}, "epochs": 2, "weightDecay": 0.1}}
"""With beta2 0.8, RAdam uses the second moment from the seventh step on."""


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_killed_run_with_radam_is_bitwise_equal(harness: TrainingHarness, zero: int) -> None:
    blocks = {"kind": "bert-dropout", "zero": zero, **RADAM}
    through, _ = harness.check_resume(f"radam-{zero}", kills=[4], **blocks)
    if zero == 2:
        plain = harness.config("radam-adamw", **blocks | {"training": {"epochs": 2, "weightDecay": 0.1}})
        harness.finish(plain)
        assert harness.losses(plain) != harness.losses(through)


def test_a_run_with_radam_continues_with_another_world_size_and_zero_stage(harness: TrainingHarness) -> None:
    harness.check_move("radam-moved", before=3, kind="llama", **RADAM)
