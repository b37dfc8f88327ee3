"""ReduceOnPlateau against the class of torch."""

import random
from typing import Any

import pytest
import torch

from finetune_api.v1alpha1 import ScheduleOptions
from finetune_trainer.train.plateau import PlateauState


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {"factor": 0.1, "patience": 10}),
        ({"factor": 0.5, "patience": 0}, {"factor": 0.5, "patience": 0}),
        ({"factor": 0.5, "patience": 2, "minLearningRateRatio": 0.2}, {"factor": 0.5, "patience": 2, "min_lr": 0.2}),
    ],
    ids=["defaults", "at once", "with a floor"],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_learning_rate_is_lowered_as_by_torch(options: dict[str, Any], theirs: dict[str, Any], seed: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **theirs)
    state, chosen = PlateauState(), ScheduleOptions.model_validate(options)
    generator, factors = random.Random(seed), set()
    for step in range(100):
        loss = 1.0 / (1 + min(step, 30)) + generator.choice([0.0, 1e-6, 0.01])
        schedule.step(loss)
        state = state.after(loss, chosen)
        assert state.factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        factors.add(state.factor)
    assert len(factors) > 2
