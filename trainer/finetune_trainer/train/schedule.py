"""The learning rate of every step as a share of `spec.training.learningRate`. Pure.

transformers' own schedules are not used: the polynomial one reads `optimizer.defaults`, which DeepSpeed's optimizers do
not have, and decays to the absolute rate 1e-7 with power 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.v1alpha1 import Schedule, ScheduleOptions
from finetune_api.v1alpha1.training import SCHEDULE_DEFAULTS

INVERSE_SQRT_STEPS = 10_000
"""Time scale of InverseSqrt without a warmup, as in transformers."""


@dataclass(frozen=True)
class _Shape:
    """Steps and resolved options of a schedule."""

    warmup: int
    total: int
    power: float
    cycles: int
    decay_ratio: float

    @property
    def decay_start(self) -> int:
        """The step at which WarmupStableDecay begins to decay; not within the warmup."""
        return max(self.warmup, self.total - math.ceil(self.decay_ratio * self.total))

    def progress(self, step: int) -> float:
        """Share of the steps after the warmup."""
        return (step - self.warmup) / max(1, self.total - self.warmup)


def resolved_options(options: ScheduleOptions | None) -> dict[str, float | int]:
    """Return the value of each option: that of the spec, else the default."""
    return SCHEDULE_DEFAULTS | ({} if options is None else options.model_dump(exclude_none=True))


def rate_factor(
    schedule: Schedule, step: int, *, warmup: int, total: int, options: ScheduleOptions | None = None
) -> float:
    """Return the learning rate at `step`, counted from 0, as a share of its peak.

    During the first `warmup` steps step / warmup. Afterwards, with p = (step - warmup) / (total - warmup):

    - Constant: 1
    - Linear: 1 - p
    - Cosine: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2016, arXiv 1608.03983, without restarts)
    - Polynomial: (1 - p)^power
    - InverseSqrt: sqrt(warmup / step) (Vaswani et al. 2017, arXiv 1706.03762); without a warmup
      sqrt(10000 / (step + 10000))
    - CosineWithRestarts: (1 + cos(pi (cycles p mod 1))) / 2 (Loshchilov & Hutter 2016, with cycles of equal length)
    - WarmupStableDecay: 1, then (1 + cos(pi q)) / 2, with q as the share of the last decayRatio * total steps (Hu et
      al. 2024, arXiv 2404.06395, with the decay of transformers' get_wsd_schedule)
    - ReduceOnPlateau: 1; `plateau.PlateauState` lowers it

    With minLearningRateRatio m, a decay f becomes m + (1 - m) f, as in transformers.
    """
    if step < warmup:
        return step / warmup
    resolved = resolved_options(options)
    floor = float(resolved["min_learning_rate_ratio"])
    shape = _Shape(warmup, total, resolved["power"], int(resolved["cycles"]), resolved["decay_ratio"])
    factor = _DECAYS[schedule](step, shape)
    return factor * (1.0 - floor) + floor


def _constant(step: int, shape: _Shape) -> float:
    return 1.0


def _linear(step: int, shape: _Shape) -> float:
    return max(0.0, (shape.total - step) / max(1, shape.total - shape.warmup))


def _cosine(step: int, shape: _Shape) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - shape.warmup) / max(1, shape.total - shape.warmup))))


def _polynomial(step: int, shape: _Shape) -> float:
    power: float = _linear(step, shape) ** shape.power
    return power


def _inverse_sqrt(step: int, shape: _Shape) -> float:
    scale = shape.warmup or INVERSE_SQRT_STEPS
    return 1.0 / math.sqrt((step + scale - shape.warmup) / scale)


def _cosine_with_restarts(step: int, shape: _Shape) -> float:
    if step >= shape.total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (shape.cycles * shape.progress(step) % 1.0)))


def _warmup_stable_decay(step: int, shape: _Shape) -> float:
    if step < shape.decay_start:
        return 1.0
    if step >= shape.total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - shape.decay_start) / (shape.total - shape.decay_start)))


_DECAYS: dict[Schedule, Callable[[int, _Shape], float]] = {
    Schedule.CONSTANT: _constant,
    Schedule.LINEAR: _linear,
    Schedule.COSINE: _cosine,
    Schedule.POLYNOMIAL: _polynomial,
    Schedule.INVERSE_SQRT: _inverse_sqrt,
    Schedule.COSINE_WITH_RESTARTS: _cosine_with_restarts,
    Schedule.WARMUP_STABLE_DECAY: _warmup_stable_decay,
    Schedule.REDUCE_ON_PLATEAU: _constant,
}
