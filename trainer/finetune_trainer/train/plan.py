"""Number of steps of a training, and the steps at which it logs and evaluates. Pure."""

import math
from dataclasses import dataclass

from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import Metric, Schedule, ScheduleOptions

from ..checkpoint.save_interval import SavePolicy
from .schedule import rate_factor, resolved_options

DENSE_LOG_STEPS = 2000
"""Trainings of up to this many steps log every step, longer ones every tenth."""

_HARDLY_LOWER = 0.9
"""Share of the peak learning rate. A schedule that ends above it is almost constant."""


@dataclass(frozen=True)
class TrainingPlan:
    """Counts of optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int
    evaluate_every: int
    """0: never, because there is no validation split."""
    saves: SavePolicy
    schedule: Schedule = Schedule.LINEAR
    options: ScheduleOptions | None = None
    most_without_gain: int | None = None
    """Validations without a lower loss after which early stopping ends the training. None: it does not, or watches
    another metric."""

    def rate_factor(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0, as a share of its peak; with ReduceOnPlateau, as long as
        the validation loss falls."""
        return rate_factor(self.schedule, step, warmup=self.warmup_steps, total=self.total_steps, options=self.options)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings about the learning rate, one line each."""
        if self.warmup_steps >= self.total_steps:
            return (
                f"the learning rate never reaches spec.training.learningRate: the warmup has {self.warmup_steps} steps "
                f"and the whole training {self.total_steps}; lower spec.training.warmup.steps below {self.total_steps}",
            )
        steps = self.total_steps - self.warmup_steps
        decay = resolved_options(self.options)["decay_ratio"] * self.total_steps
        # A step less is due to rounding.
        if self.schedule is Schedule.WARMUP_STABLE_DECAY and steps <= decay - 1:
            return (
                f"the decay is shorter than spec.training.scheduleOptions.decayRatio: it should have {decay:.3g} of "
                f"{self.total_steps} steps, and the warmup leaves {steps}; lower one of them",
            )
        last = self.rate_factor(self.total_steps - 1)
        if self.schedule is Schedule.INVERSE_SQRT and not self.warmup_steps and last > _HARDLY_LOWER:
            return (
                "spec.training.learningRateSchedule InverseSqrt without a warmup hardly lowers the learning rate: "
                f"after {self.total_steps} steps it is still {last:.0%} of its peak; set spec.training.warmup",
            )
        cycles = resolved_options(self.options)["cycles"]
        if self.schedule is Schedule.COSINE_WITH_RESTARTS and steps < 2 * cycles:
            return (
                f"the learning rate hardly decays: {cycles} cycles of spec.training.learningRateSchedule "
                f"CosineWithRestarts share {steps} steps; lower spec.training.scheduleOptions.cycles",
            )
        return self._plateau_warnings() if self.schedule is Schedule.REDUCE_ON_PLATEAU else ()

    def _plateau_warnings(self) -> tuple[str, ...]:
        patience = resolved_options(self.options)["patience"]
        if self.most_without_gain is not None and self.most_without_gain <= patience:
            return (
                "the learning rate is hardly lowered: spec.training.earlyStopping ends the training after "
                f"{self.most_without_gain} validations without a lower loss, and spec.training.learningRateSchedule "
                f"ReduceOnPlateau waits for more than {patience}; lower spec.training.scheduleOptions.patience, or "
                "raise spec.training.earlyStopping.patience",
            )
        # The first validation has the lowest loss so far, and the last one has no steps after it.
        evaluations = max(0, math.ceil(self.total_steps / max(1, self.evaluate_every)) - 2)
        if evaluations <= patience:
            return (
                "the learning rate is never lowered: spec.training.learningRateSchedule ReduceOnPlateau waits for more "
                f"than {patience} validations without a lower loss, and only {evaluations} are possible; lower "
                "spec.training.scheduleOptions.patience or spec.evaluation.everySteps",
            )
        return ()

    def evaluates_at(self, step: int) -> bool:
        """Whether a step is followed by a validation. The last one always is, so that the final state has metrics."""
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.total_steps)

    def logs_at(self, step: int) -> bool:
        """Whether a step is logged: every `log_every`th, the first and the last one.

        Validation losses are compared with the first loss; a mean over ten steps may already show a divergence.
        """
        return step % self.log_every == 0 or step in (1, self.total_steps)


def training_plan(config: PreparedConfig) -> TrainingPlan:
    """Return the plan of a run."""
    training, per_epoch, total = config.spec.training, config.steps_per_epoch, config.total_steps
    early = training.early_stopping
    return TrainingPlan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        # At least one step is not part of the warmup: the learning rate of a single step would otherwise be 0.
        warmup_steps=training.warmup.steps or min(math.ceil((training.warmup.ratio or 0.0) * total), total - 1),
        log_every=1 if total <= DENSE_LOG_STEPS else 10,
        evaluate_every=(config.spec.evaluation.every_steps or per_epoch) if config.prepared.counts.validation else 0,
        saves=SavePolicy.of(config.spec.checkpoint, total_steps=total),
        schedule=training.learning_rate_schedule,
        options=training.schedule_options,
        most_without_gain=early.patience if early is not None and early.metric is Metric.LOSS else None,
    )
