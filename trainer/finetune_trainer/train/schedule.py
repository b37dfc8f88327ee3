"""The learning rate of every step as a share of `spec.training.learningRate`. Pure.

transformers' own schedules are not used: the polynomial one reads `optimizer.defaults`, which DeepSpeed's optimizers do
not have, and decays to the absolute rate 1e-7 with power 1.
"""

import math
from collections.abc import Callable

from finetune_api.v1alpha1 import Schedule

POLYNOMIAL_POWER = 2
"""Power of the Polynomial schedule; 1 would be Linear."""

INVERSE_SQRT_STEPS = 10_000
"""Time scale of InverseSqrt without a warmup, as in transformers."""


def rate_factor(schedule: Schedule, step: int, *, warmup: int, total: int) -> float:
    """Return the learning rate at `step`, counted from 0, as a share of its peak.

    During the first `warmup` steps step / warmup. Afterwards, with p = (step - warmup) / (total - warmup):

    - Constant: 1
    - Linear: 1 - p
    - Cosine: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2016, arXiv 1608.03983, without restarts)
    - Polynomial: (1 - p)^2
    - InverseSqrt: sqrt(warmup / step) (Vaswani et al. 2017, arXiv 1706.03762); without a warmup
      sqrt(10000 / (step + 10000))
    """
    if step < warmup:
        return step / warmup
    return _DECAYS[schedule](step, warmup, total)


def _constant(step: int, warmup: int, total: int) -> float:
    return 1.0


def _linear(step: int, warmup: int, total: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def _polynomial(step: int, warmup: int, total: int) -> float:
    return _linear(step, warmup, total) ** POLYNOMIAL_POWER


def _inverse_sqrt(step: int, warmup: int, total: int) -> float:
    scale = warmup or INVERSE_SQRT_STEPS
    return 1.0 / math.sqrt((step + scale - warmup) / scale)


_DECAYS: dict[Schedule, Callable[[int, int, int], float]] = {
    Schedule.CONSTANT: _constant,
    Schedule.LINEAR: _linear,
    Schedule.COSINE: _cosine,
    Schedule.POLYNOMIAL: _polynomial,
    Schedule.INVERSE_SQRT: _inverse_sqrt,
}
