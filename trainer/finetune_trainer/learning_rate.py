"""The learning rate of a run whose spec has none: a rule for the losses of a range test, and the record of its result.

Pure, and importable without torch. `train.range_test` measures the losses.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from finetune_api.trainer_config import Exchanged

MAX_STEPS = 64
"""Optimizer steps of a test."""
MAX_PASSES = 4
"""Passes of a test over the training split. Later ones measure how well the model remembers its rows."""
MIN_STEPS = 16
"""With fewer steps, neighboring rates are so far apart that the steepest one is chance."""

_LOWER, _HIGHER = 1 / 20, 500
"""Bounds of the tested rates, as multiples of the default rate of the method."""
_HIGHEST = 1.0
_SMOOTHED_STEPS = 2.5
"""Standard deviation of the Gaussian weights, in steps, with which losses are averaged."""
_DIVERGED = 2.0
"""A test ends if its loss is this multiple of the lowest one so far."""
_AVERAGED = 4
"""Recent losses whose mean decides whether a test ends."""
_MIN_FALL = 0.02
"""Share of the first loss by which the smoothed loss must fall."""
_MIN_FALL_BY_NOISE = 2.5
"""The fall as a multiple of the standard deviation of the losses. Of 64 losses that only vary, less than 1 % pass."""

RULE = (
    "the rate at which the smoothed loss of a range test fell fastest (Smith 2015, arXiv 1506.01186; "
    "Howard & Gugger 2020, arXiv 2002.04688)"
)

_MAX_POINTS = 1024
Rate = Annotated[float, Field(ge=1e-12, le=10.0)]
"""As in the API."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=512)]


class ChosenRate(Exchanged):
    """`learning-rate.json`: the learning rate of a run, and the test that it was chosen by."""

    learning_rate: Rate
    rule: Text = RULE
    default_reason: Text = ""
    """Why the rate is the default of the method. Empty: it was chosen from the losses."""
    rates: Annotated[tuple[Rate, ...], Field(max_length=_MAX_POINTS)] = ()
    """Learning rate of each step of the test, ascending."""
    losses: Annotated[tuple[Finite, ...], Field(max_length=_MAX_POINTS)] = ()
    """Loss of each step, in nats, before its update."""

    @model_validator(mode="after")
    def _has_a_rate_for_each_loss(self) -> Self:
        if len(self.rates) != len(self.losses):
            raise ValueError(f"rates must be as many as losses, {len(self.losses)}, not {len(self.rates)}")
        return self

    @property
    def sentence(self) -> str:
        """How the rate was chosen, for log and report."""
        return self.note or f"learning rate {self.learning_rate:g}: {self.rule}"

    @property
    def note(self) -> str:
        """A sentence about a default rate, for status and report; empty if the rate was chosen."""
        if not self.default_reason:
            return ""
        return (
            f"the learning rate is {self.learning_rate:g}, the default of the method, because {self.default_reason}; "
            "set spec.training.learningRate to use another one"
        )


def rates_to_test(default: float, steps: int) -> tuple[float, ...]:
    """Return rates that rise exponentially, from a twentieth to 500 times the default rate of a method."""
    lowest, highest = default * _LOWER, min(default * _HIGHER, _HIGHEST)
    return tuple(map(float, np.geomspace(lowest, highest, steps)))


def steps_of_test(steps_per_epoch: int) -> int:
    """Return the number of steps of a test; 0 if the training split is too small for one."""
    steps = min(MAX_STEPS, MAX_PASSES * steps_per_epoch)
    return steps if steps >= MIN_STEPS else 0


def too_small(steps_per_epoch: int) -> str:
    """Return the reason for the default rate if `steps_of_test` is 0."""
    needed = -(-MIN_STEPS // MAX_PASSES)
    return f"the training split has {steps_per_epoch} batches, and a range test needs {needed}"


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether a test ends here: its last loss is not finite, or recent ones are far above the lowest."""
    if not losses:
        return False
    if not math.isfinite(losses[-1]):
        return True
    means = np.convolve(losses, np.ones(_AVERAGED) / _AVERAGED, "valid") if len(losses) >= _AVERAGED else np.array([])
    return bool(len(means) and means[-1] > _DIVERGED * max(float(means.min()), 1e-3) and means[-1] > losses[0])


def smoothed(losses: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean of each loss and its neighbours, with Gaussian weights. It does not lag behind."""
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / _SMOOTHED_STEPS) ** 2)
    averaged: npt.NDArray[np.float64] = weights @ np.asarray(losses, dtype=np.float64) / weights.sum(axis=1)
    return averaged


def choose(rates: Sequence[float], losses: Sequence[float], *, default: float) -> ChosenRate:
    """Apply `RULE`. `losses` may be fewer than `rates`, if the test has ended early."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    tested = tuple(rates[: len(finite)])
    made: dict[str, Any] = {"rates": tested, "losses": tuple(finite)}
    if len(finite) < MIN_STEPS // 2:
        reason = f"the range test diverged at step {len(finite) + 1}"
        return ChosenRate(learning_rate=default, default_reason=reason, **made)
    # A loss far above the first one says no more than that the training diverges.
    curve = smoothed(np.minimum(finite, _DIVERGED * finite[0]))
    lowest = int(curve.argmin())
    fall = float(curve[: lowest + 1].max() - curve[lowest])
    # The median of differences between neighbours is about their standard deviation. The steep part hardly changes it.
    noise = float(np.median(np.abs(np.diff(finite))))
    if fall <= max(_MIN_FALL * abs(float(curve[0])), _MIN_FALL_BY_NOISE * noise):
        reason = "the loss of the range test never fell"
        return ChosenRate(learning_rate=default, default_reason=reason, **made)
    slope = np.gradient(curve, np.log(tested))
    return ChosenRate(learning_rate=two_digits(tested[int(slope[: lowest + 1].argmin())]), **made)


def two_digits(rate: float) -> float:
    """Return the rate with two significant digits, so that it can be copied exactly into a spec."""
    return float(f"{rate:.1e}")
