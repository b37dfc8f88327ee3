"""Every learning-rate schedule against its formula, written down once more."""

from collections.abc import Callable
from math import cos, pi, sqrt
from typing import Any

import pytest
import torch
from transformers import optimization

from finetune_api.v1alpha1 import Schedule, ScheduleOptions
from finetune_trainer.train.schedule import rate_factor

WARMUP, TOTAL = 4, 24

# The step, from 0, and the factor of the peak there.
RISE = [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0)]
TABLE: dict[Schedule, list[tuple[int, float]]] = {
    Schedule.CONSTANT: [(5, 1.0), (14, 1.0), (23, 1.0)],
    Schedule.LINEAR: [(5, 19 / 20), (14, 10 / 20), (23, 1 / 20), (24, 0.0), (30, 0.0)],
    Schedule.COSINE: [(5, (1 + cos(pi / 20)) / 2), (14, 0.5), (23, (1 + cos(pi * 19 / 20)) / 2), (24, 0.0)],
    Schedule.POLYNOMIAL: [(5, (19 / 20) ** 2), (14, 0.25), (23, 1 / 400), (24, 0.0), (30, 0.0)],
    Schedule.INVERSE_SQRT: [(5, sqrt(4 / 5)), (14, sqrt(4 / 14)), (23, sqrt(4 / 23)), (100, 0.2)],
    Schedule.COSINE_WITH_RESTARTS: [(9, 0.5), (13, (1 + cos(pi * 9 / 10)) / 2), (14, 1.0), (19, 0.5), (24, 0.0)],
    # The last ceil(0.2 * 24) = 5 steps decay.
    Schedule.WARMUP_STABLE_DECAY: [(5, 1.0), (19, 1.0), (20, (1 + cos(pi / 5)) / 2), (24, 0.0), (30, 0.0)],
    # As long as the validation loss falls; see test_plateau.py.
    Schedule.REDUCE_ON_PLATEAU: [(5, 1.0), (14, 1.0), (23, 1.0)],
}
CASES = [
    pytest.param(schedule, step, factor, id=f"{schedule}-{step}")
    for schedule in Schedule
    for step, factor in [*RISE, *TABLE[schedule]]
]


@pytest.mark.parametrize(("schedule", "step", "factor"), CASES)
def test_a_schedule_follows_its_formula(schedule: Schedule, step: int, factor: float) -> None:
    assert rate_factor(schedule, step, warmup=WARMUP, total=TOTAL) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize("schedule", Schedule)
def test_without_a_warmup_the_first_step_has_the_peak(schedule: Schedule) -> None:
    assert rate_factor(schedule, 0, warmup=0, total=TOTAL) == 1.0


def test_no_two_schedules_of_steps_are_the_same() -> None:
    of_steps = set(Schedule) - {Schedule.REDUCE_ON_PLATEAU}
    curves = {tuple(rate_factor(one, step, warmup=WARMUP, total=TOTAL) for step in range(TOTAL)) for one in of_steps}
    assert len(curves) == len(of_steps)


def test_inverse_sqrt_without_a_warmup_has_the_time_scale_of_transformers() -> None:
    assert rate_factor(Schedule.INVERSE_SQRT, 30_000, warmup=0, total=40_000) == pytest.approx(0.5)


LIKE: dict[str, tuple[Schedule, dict[str, Any], Callable[..., Any], dict[str, Any]]] = {
    "cosine": (
        Schedule.COSINE,
        {"minLearningRateRatio": 0.1},
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
        {"num_training_steps": TOTAL, "min_lr_rate": 0.1},
    ),
    "polynomial": (
        Schedule.POLYNOMIAL,
        {"minLearningRateRatio": 0.25, "power": 3.0},
        optimization.get_polynomial_decay_schedule_with_warmup,
        {"num_training_steps": TOTAL, "lr_end": 0.25, "power": 3.0},
    ),
    "linear": (
        Schedule.LINEAR,
        {"minLearningRateRatio": 0.25},
        optimization.get_polynomial_decay_schedule_with_warmup,
        {"num_training_steps": TOTAL, "lr_end": 0.25, "power": 1.0},
    ),
    "restarts": (
        Schedule.COSINE_WITH_RESTARTS,
        {"cycles": 3},
        optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
        {"num_training_steps": TOTAL, "num_cycles": 3},
    ),
    "warmup, stable, decay": (
        Schedule.WARMUP_STABLE_DECAY,
        {"decayRatio": 0.25},
        optimization.get_wsd_schedule,
        {"num_training_steps": TOTAL, "num_decay_steps": 6},
    ),
}
"""Schedule, its options, and the same one of transformers with a peak of 1."""


@pytest.mark.parametrize("name", LIKE)
def test_the_rates_are_those_of_transformers(name: str) -> None:
    schedule, options, function, arguments = LIKE[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = function(optimizer, num_warmup_steps=WARMUP, **arguments)
    chosen = ScheduleOptions.model_validate(options)
    for step in range(TOTAL + 1):
        ours = rate_factor(schedule, step, warmup=WARMUP, total=TOTAL, options=chosen)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        theirs.step()


FLOORS = [(Schedule.COSINE_WITH_RESTARTS, 9, 0.6), (Schedule.WARMUP_STABLE_DECAY, 24, 0.2), (Schedule.LINEAR, 14, 0.6)]


@pytest.mark.parametrize(("schedule", "step", "factor"), FLOORS)
def test_a_decay_ends_at_the_least_rate(schedule: Schedule, step: int, factor: float) -> None:
    options = ScheduleOptions(min_learning_rate_ratio=0.2)
    assert rate_factor(schedule, step, warmup=WARMUP, total=TOTAL, options=options) == pytest.approx(factor)
    assert rate_factor(schedule, TOTAL, warmup=WARMUP, total=TOTAL, options=options) == pytest.approx(0.2)
    assert rate_factor(schedule, 1, warmup=WARMUP, total=TOTAL, options=options) == 0.25


@pytest.mark.parametrize(("ratio", "first"), [(0.0, 24), (0.25, 18), (1.0, 4)])
def test_the_decay_has_a_share_of_the_steps_and_begins_after_the_warmup(ratio: float, first: int) -> None:
    options = ScheduleOptions(decay_ratio=ratio)
    rates = [
        rate_factor(Schedule.WARMUP_STABLE_DECAY, step, warmup=WARMUP, total=TOTAL, options=options)
        for step in range(WARMUP, TOTAL)
    ]
    assert rates.count(1.0) == min(first - WARMUP + 1, len(rates))
    assert rates == sorted(rates, reverse=True)
