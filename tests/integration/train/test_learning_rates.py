"""The learning rates of a training are those of its schedule."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest
import torch

from training_harness import STEPS_PER_EPOCH, TrainingHarness

PEAK, STEPS = 5e-3, 2 * STEPS_PER_EPOCH

SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "CosineWithRestarts": ({"minLearningRateRatio": 0.2}, lambda step: 0.2 + 0.4 * (1 + cos(pi * (step % 5) / 5))),
    "WarmupStableDecay": ({"decayRatio": 0.4}, lambda step: (1 + cos(pi * max(0, step - 6) / 4)) / 2),
    "Linear": ({"minLearningRateRatio": 0.5}, lambda step: 1 - step / 20),
}
"""Schedule -> its options, and the share of the peak at a step, from 0."""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_logged_learning_rates_follow_the_formula_also_after_a_stop(
    harness: TrainingHarness, schedule: str
) -> None:
    options, factor = SCHEDULES[schedule]
    training = {"learningRateSchedule": schedule, "scheduleOptions": options}
    name = f"rates-{schedule.lower()}"
    stopped = harness.run(harness.config(name, kind="bert", training=training), TEST_END="stop", TEST_END_STEP="7")
    assert stopped.exit_codes == [75, 75], stopped.output
    config = harness.config(name, kind="bert", training=training, attempt=2)
    assert harness.run(config).exit_codes == [0, 0]
    rates = [entry["learning_rate"] for entry in harness.training_log(config) if "loss" in entry]
    assert rates == pytest.approx([PEAK * factor(step) for step in range(STEPS)], rel=1e-12)


def test_a_plateau_of_the_validation_loss_lowers_the_rate_as_in_torch_also_after_a_stop(
    harness: TrainingHarness,
) -> None:
    peak = 0.2  # the loss rises and falls
    blocks: dict[str, Any] = {
        "training": {
            "learningRate": peak,
            "learningRateSchedule": "ReduceOnPlateau",
            "scheduleOptions": {"factor": 0.5, "patience": 1},
        },
        "evaluation": {"everySteps": 1},
    }
    stopped = harness.run(harness.config("rates-plateau", kind="bert", **blocks), TEST_END="stop", TEST_END_STEP="6")
    assert stopped.exit_codes == [75, 75], stopped.output
    config = harness.config("rates-plateau", kind="bert", attempt=2, **blocks)
    assert harness.run(config).exit_codes == [0, 0]

    losses = harness.evaluation_losses(config)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    expected = []
    for step in range(1, STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        theirs.step(losses[step])
    assert len(set(expected[:6])) > 1
    assert len(set(expected[6:])) > 1
    rates = [entry["learning_rate"] for entry in harness.training_log(config) if "loss" in entry]
    assert rates == pytest.approx(expected, rel=1e-12)
