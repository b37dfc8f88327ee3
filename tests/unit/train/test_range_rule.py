"""The rule that chooses a learning rate from the losses of a range test."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_trainer.learning_rate import (
    MAX_STEPS,
    ChosenRate,
    choose,
    has_diverged,
    rates_to_test,
    smoothed,
    steps_of_test,
    two_digits,
)
from finetune_trainer.methods import METHODS

PAGE = Path(__file__).parents[3] / "docs/techniques/learning-rate.md"
DEFAULT = 2e-5


def noise(scale: float) -> Callable[[], float]:
    draw = random.Random(3)
    return lambda: draw.gauss(0, scale)


def falling(at: float, *, to: float = 0.5, scale: float = 0.02) -> list[float]:
    """A loss that falls from 2, fastest at the rate `at`, and rises above ten times this rate."""
    error = noise(scale)
    rates = rates_to_test(DEFAULT, MAX_STEPS)
    falls = [(2.0 - to) / (1 + (at / rate) ** 2) for rate in rates]
    return [2.0 - fall + max(0.0, rate / at / 10 - 1) + error() for fall, rate in zip(falls, rates, strict=True)]


@pytest.mark.parametrize("at", [1e-5, 1e-4, 1e-3])
def test_the_rate_is_that_at_which_the_smoothed_loss_falls_fastest(at: float) -> None:
    losses = falling(at)
    ended = next((step for step in range(len(losses)) if has_diverged(losses[:step])), len(losses))
    chosen = choose(rates_to_test(DEFAULT, MAX_STEPS), losses[:ended], default=DEFAULT)
    assert not chosen.default_reason
    assert at / 2 < chosen.learning_rate < 2 * at
    assert len(chosen.losses) == len(chosen.rates) == ended


def test_a_loss_that_explodes_does_not_hide_the_fall_before_it() -> None:
    losses = [*falling(1e-4)[:40], 1e30]
    chosen = choose(rates_to_test(DEFAULT, MAX_STEPS), losses, default=DEFAULT)
    assert not chosen.default_reason
    assert 5e-5 < chosen.learning_rate < 2e-4


FLAT = noise(0.05)
USELESS: dict[str, tuple[list[float], str]] = {
    "noise": ([2.0 + FLAT() for _ in range(MAX_STEPS)], "the loss of the range test never fell"),
    "constant": ([2.0] * MAX_STEPS, "the loss of the range test never fell"),
    "rising": ([2.0 + 0.01 * step for step in range(MAX_STEPS)], "the loss of the range test never fell"),
    "zero": ([0.0] * MAX_STEPS, "the loss of the range test never fell"),
    "nan": ([2.0, math.nan], "the range test diverged at step 2"),
    "none": ([], "the range test diverged at step 1"),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_loss_that_does_not_fall_gives_the_default_with_its_reason(case: str) -> None:
    losses, reason = USELESS[case]
    chosen = choose(rates_to_test(DEFAULT, MAX_STEPS), losses, default=DEFAULT)
    assert (chosen.learning_rate, chosen.default_reason) == (DEFAULT, reason)
    assert "2e-05, the default of the method" in chosen.note
    assert ChosenRate.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([2.0] * 9, False),
        ([2.0, math.inf], True),
        ([2.0, math.nan], True),
        ([2.0, 1.0, 1.0, 1.0, 1.0, 9.0], True),
        ([2.0, 0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5], False),
    ],
)
def test_a_test_ends_when_the_loss_is_far_above_its_start(losses: list[float], ends: bool) -> None:
    assert has_diverged(losses) is ends


@pytest.mark.parametrize(("per_epoch", "steps"), [(1, 0), (3, 0), (4, 16), (5, 20), (16, 64), (10_000, 64)])
def test_a_small_training_split_has_few_steps_or_no_test(per_epoch: int, steps: int) -> None:
    assert steps_of_test(per_epoch) == steps


@pytest.mark.parametrize("name", [*METHODS])
def test_every_method_has_a_documented_default_rate_within_the_tested_ones(name: str) -> None:
    default = METHODS[name].default_learning_rate
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and f"`{name}`" in line]
    rates = rates_to_test(default, MAX_STEPS)
    found = [float(word) for word in row.replace("|", " ").split() if word[0].isdigit()]
    assert found == pytest.approx([default] if METHODS[name].no_range_test else [default, rates[0], rates[-1]])
    assert len(rates) == MAX_STEPS
    assert list(rates) == sorted(rates)
    assert rates[0] < default < rates[-1] <= 1.0


def test_a_chosen_rate_can_be_copied_exactly_from_the_status() -> None:
    for rate in rates_to_test(DEFAULT, MAX_STEPS):
        assert float(f"{two_digits(rate):g}") == two_digits(rate) == pytest.approx(rate, rel=0.06)


def test_the_mean_of_neighbours_keeps_a_straight_line_and_has_no_lag() -> None:
    line = [3.0 - 0.01 * step for step in range(40)]
    assert smoothed(line)[10:30] == pytest.approx(line[10:30])


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1e9},
        {"rates": [1e-3], "losses": []},
        {"rates": [1e-3] * 5000, "losses": [1.0] * 5000},
        {"rates": [1e-3], "losses": ["Infinity"]},
        {"rule": "x" * 5000},
    ],
)
def test_a_record_of_others_is_read_within_bounds(change: dict[str, Any]) -> None:
    good = {"learning_rate": 1e-3, "rates": [1e-4], "losses": [1.0]}
    assert ChosenRate.model_validate_json(json.dumps(good)).learning_rate == 1e-3
    with pytest.raises(ValidationError):
        ChosenRate.model_validate_json(json.dumps(good | change))
