"""Every learning-rate schedule against its formula, written down once more."""

from math import cos, pi, sqrt

import pytest

from finetune_api.v1alpha1 import Schedule
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


def test_no_two_schedules_are_the_same() -> None:
    curves = {tuple(rate_factor(one, step, warmup=WARMUP, total=TOTAL) for step in range(TOTAL)) for one in Schedule}
    assert len(curves) == len(Schedule)


def test_inverse_sqrt_without_a_warmup_has_the_time_scale_of_transformers() -> None:
    assert rate_factor(Schedule.INVERSE_SQRT, 30_000, warmup=0, total=40_000) == pytest.approx(0.5)
