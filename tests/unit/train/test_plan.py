"""Lengths, schedules, and when a training logs and evaluates."""

from typing import Any

import pytest

from finetune_trainer.checkpoint.save_interval import SavePolicy
from finetune_trainer.train.plan import training_plan
from train_configs import train_config

# 100 rows in batches of 16: 7 steps an epoch, the last batch filled up.
LENGTHS = [
    ({}, 7, 21),
    ({"training": {"epochs": 2}}, 7, 14),
    ({"training": {"maxSteps": 5}}, 7, 5),
]


@pytest.mark.parametrize(("spec", "per_epoch", "total"), LENGTHS)
def test_length(spec: dict[str, Any], per_epoch: int, total: int) -> None:
    plan = training_plan(train_config(**spec))
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)


def test_the_packs_of_an_epoch_are_counted_instead_of_its_examples() -> None:
    """100 examples in 20 packs, in global batches of 16 packs."""
    assert training_plan(train_config(prepared={"packing": "Packed", "packs": 20})).steps_per_epoch == 2


WARMUPS = [({}, 0), ({"ratio": 0.1}, 3), ({"steps": 4}, 4), ({"steps": 0}, 0), ({"ratio": 0.0}, 0)]


@pytest.mark.parametrize(("warmup", "steps"), WARMUPS)
def test_warmup(warmup: dict[str, Any], steps: int) -> None:
    assert training_plan(train_config(training={"warmup": warmup})).warmup_steps == steps


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_warmup_by_ratio_leaves_a_step_at_the_peak_however_short_the_training_is(total: int) -> None:
    plan = training_plan(train_config(training={"maxSteps": total, "warmup": {"ratio": 0.9}}))
    assert max(plan.rate_factor(step) for step in range(total)) == 1.0


def test_a_warmup_longer_than_the_training_gets_a_warning_with_both_numbers() -> None:
    (warning,) = training_plan(train_config(training={"warmup": {"steps": 1000}})).warnings
    assert "warmup has 1000 steps" in warning
    assert "whole training 21" in warning
    assert training_plan(train_config(training={"warmup": {"steps": 20}})).warnings == ()


@pytest.mark.parametrize(
    ("training", "warned"),
    [
        ({"warmup": {"steps": 18}}, True),
        ({"warmup": {"steps": 15}, "scheduleOptions": {"decayRatio": 0.5}}, True),
        ({"warmup": {"steps": 16}}, False),  # of 21 steps, the last 5 decay
        ({"warmup": {"ratio": 0.5}, "scheduleOptions": {"decayRatio": 0.5}}, False),  # cut by rounding alone
        ({"warmup": {"steps": 1000}}, False),  # has another warning
    ],
)
def test_a_decay_that_the_warmup_shortens_gets_a_warning(training: dict[str, Any], warned: bool) -> None:
    plan = training_plan(train_config(training={"learningRateSchedule": "WarmupStableDecay", **training}))
    assert ["the decay is shorter than" in warning for warning in plan.warnings if "reaches" not in warning] == [
        True
    ] * warned


@pytest.mark.parametrize(
    ("training", "warned"),
    [({}, True), ({"warmup": {"steps": 2}}, False), ({"epochs": 1000}, False)],
    ids=["no warmup", "a warmup", "long enough without one"],
)
def test_an_inverse_square_root_that_stays_at_its_peak_gets_a_warning(training: dict[str, Any], warned: bool) -> None:
    plan = training_plan(train_config(training={"learningRateSchedule": "InverseSqrt", **training}))
    assert ["hardly lowers" in warning for warning in plan.warnings] == [True] * warned


def test_cycles_without_room_to_decay_get_a_warning() -> None:
    training = {"learningRateSchedule": "CosineWithRestarts", "scheduleOptions": {"cycles": 11}}
    (warning,) = training_plan(train_config(training=training)).warnings
    assert "11 cycles of spec.training.learningRateSchedule CosineWithRestarts share 21 steps" in warning
    assert training_plan(train_config(training=training | {"epochs": 4})).warnings == ()


@pytest.mark.parametrize(
    ("options", "warned"),
    [({}, True), ({"patience": 5}, True), ({"patience": 4}, False)],
    ids=["defaults", "one too many", "enough"],
)
def test_a_patience_that_outlasts_the_training_gets_a_warning(options: dict[str, Any], warned: bool) -> None:
    training = {"learningRateSchedule": "ReduceOnPlateau", "scheduleOptions": options}
    plan = training_plan(train_config(training=training, evaluation={"everySteps": 3}))  # of 21 steps
    assert ["never lowered" in warning for warning in plan.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("early", "warned"),
    [({"patience": 2}, True), ({"patience": 3}, False), ({"patience": 2, "metric": "Accuracy"}, False)],
    ids=["ends before", "ends after", "another metric"],
)
def test_early_stopping_before_the_first_lower_rate_gets_a_warning(early: dict[str, Any], warned: bool) -> None:
    training = {
        "learningRateSchedule": "ReduceOnPlateau",
        "scheduleOptions": {"patience": 2},
        "earlyStopping": early,
    }
    plan = training_plan(train_config(training=training, evaluation={"everySteps": 1}))
    assert ["earlyStopping ends the training" in warning for warning in plan.warnings] == [True] * warned


@pytest.mark.parametrize(("steps", "logged"), [(2000, [*range(1, 2001)]), (2001, [1, *range(10, 2001, 10), 2001])])
def test_short_runs_log_every_step_and_long_ones_every_tenth_the_first_and_the_last(
    steps: int, logged: list[int]
) -> None:
    plan = training_plan(train_config(training={"maxSteps": steps}))
    assert [step for step in range(1, steps + 1) if plan.logs_at(step)] == logged


@pytest.mark.parametrize(
    ("spec", "steps"),
    [({}, [7, 14, 21]), ({"evaluation": {"everySteps": 9}}, [9, 18, 21]), ({"training": {"maxSteps": 9}}, [7, 9])],
)
def test_evaluations_come_at_the_end_of_epochs_or_at_an_interval_and_at_the_end(
    spec: dict[str, Any], steps: list[int]
) -> None:
    plan = training_plan(train_config(**spec))
    assert [step for step in range(1, plan.total_steps + 1) if plan.evaluates_at(step)] == steps


def test_without_a_validation_split_nothing_is_evaluated() -> None:
    counts = train_config().prepared.counts.model_copy(update={"validation": 0})  # type: ignore[union-attr]
    plan = training_plan(train_config(prepared={"counts": counts}))
    assert not any(plan.evaluates_at(step) for step in range(1, 22))


def test_the_save_policy_is_that_of_the_job_with_the_length_of_the_plan() -> None:
    plan = training_plan(train_config(checkpoint={"everySteps": 8}))
    assert plan.saves == SavePolicy(total_steps=21, every_steps=8)
