"""How long a training is, and at which steps it logs, evaluates and saves. Pure."""

import math
from dataclasses import dataclass

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Schedule
from finetune_api.v1alpha1.quantities import seconds
from finetune_api.v1alpha1.results import DEFAULT_MAX_LOST_WORK
from finetune_api.v1alpha1.training import DEFAULT_EPOCHS

from .schedule import rate_factor

DENSE_LOG_STEPS = 2000
"""Up to so many steps every one is logged, beyond it every tenth."""

NEAR_END_SHARE = 0.1
"""A save by the clock is left out when the final one comes within this share of what may be lost."""

_HARDLY_LOWER = 0.9
"""Share of the peak learning rate; a schedule that ends above it is as good as constant."""


@dataclass(frozen=True)
class TrainingPlan:
    """Counts of optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int
    evaluate_every: int
    """0: never, there is no validation split."""
    save_every: int
    """0: by the clock, `max_lost_seconds`, see cadence.py."""
    max_lost_seconds: float
    max_stale_seconds: float
    """Longest time that storing a state may take; infinite: any."""
    schedule: Schedule = Schedule.LINEAR

    def rate_factor(self, step: int) -> float:
        """Factor of the peak learning rate at a step, which counts from 0."""
        return rate_factor(self.schedule, step, warmup=self.warmup_steps, total=self.total_steps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the learning rate before it costs a training."""
        if self.warmup_steps >= self.total_steps:
            return (
                f"the learning rate never reaches spec.training.learningRate: the warmup has {self.warmup_steps} steps "
                f"and the whole training {self.total_steps}; lower spec.training.warmup.steps below {self.total_steps}",
            )
        last = self.rate_factor(self.total_steps - 1)
        if self.schedule is Schedule.INVERSE_SQRT and not self.warmup_steps and last > _HARDLY_LOWER:
            return (
                "spec.training.schedule InverseSqrt without a warmup hardly lowers the learning rate: after "
                f"{self.total_steps} steps it is still {last:.0%} of its peak; set spec.training.warmup",
            )
        return ()

    def evaluates_at(self, step: int) -> bool:
        """True at every interval and at the last step, so that the final state always has figures."""
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """True where the step number alone decides."""
        return step >= self.total_steps or (self.save_every > 0 and step % self.save_every == 0)

    def ends_soon(self, step: int, *, step_seconds: float) -> bool:
        """Whether the final save comes so soon that one by the clock is not worth it."""
        return (self.total_steps - step) * step_seconds <= NEAR_END_SHARE * self.max_lost_seconds

    def logs_at(self, step: int) -> bool:
        """Whether a step is logged whatever `log_every` is: the last one, and the first one, because validation losses
        are compared with its loss. A mean over ten steps may contain the explosion that is looked for."""
        return step in (1, self.total_steps)


def training_plan(config: TrainerConfig) -> TrainingPlan:
    """The plan of a run. An epoch has ceil(rows / global batch) steps: its last batch is filled with blanks."""
    prepared = config.prepared
    assert prepared is not None, "the train stage is told what the prepare stage decided"
    training, checkpoint = config.spec.training, config.spec.checkpoint
    per_epoch = math.ceil(prepared.counts.train / config.batch.global_size)
    total = training.max_steps or per_epoch * (training.epochs or DEFAULT_EPOCHS)
    return TrainingPlan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        # A share of the steps never takes all of them: a single step would train with a learning rate of 0.
        warmup_steps=training.warmup.steps or min(math.ceil((training.warmup.ratio or 0.0) * total), total - 1),
        log_every=1 if total <= DENSE_LOG_STEPS else 10,
        evaluate_every=(config.spec.evaluation.every_steps or per_epoch) if prepared.counts.validation else 0,
        save_every=checkpoint.every_steps or 0,
        max_lost_seconds=seconds(checkpoint.max_lost_work or DEFAULT_MAX_LOST_WORK),
        max_stale_seconds=seconds(checkpoint.max_staleness) if checkpoint.max_staleness else math.inf,
        schedule=training.schedule,
    )
