"""How long a training is, when it saves, and at which steps it logs and evaluates. Pure."""

import math
from dataclasses import dataclass

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Schedule
from finetune_api.v1alpha1.training import DEFAULT_EPOCHS

from ..checkpoint.save_interval import SavePolicy
from .schedule import rate_factor

DENSE_LOG_STEPS = 2000
"""Up to so many steps every one is logged, beyond it every tenth."""

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
    saves: SavePolicy
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

    def logs_at(self, step: int) -> bool:
        """Whether a step is logged whatever `log_every` is: the last one, and the first one, because validation losses
        are compared with its loss. A mean over ten steps may contain the explosion that is looked for."""
        return step in (1, self.total_steps)


def training_plan(config: TrainerConfig) -> TrainingPlan:
    """The plan of a run. An epoch has ceil(rows / global batch) steps: its last batch is filled with blanks."""
    prepared = config.prepared
    assert prepared is not None, "the train stage needs the result of the prepare stage"
    training = config.spec.training
    per_epoch = math.ceil(prepared.counts.train / config.batch.global_size)
    total = training.max_steps or per_epoch * (training.epochs or DEFAULT_EPOCHS)
    return TrainingPlan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        # A share of the steps never takes all of them: a single step would train with a learning rate of 0.
        warmup_steps=training.warmup.steps or min(math.ceil((training.warmup.ratio or 0.0) * total), total - 1),
        log_every=1 if total <= DENSE_LOG_STEPS else 10,
        evaluate_every=(config.spec.evaluation.every_steps or per_epoch) if prepared.counts.validation else 0,
        saves=SavePolicy.of(config.spec.checkpoint, total_steps=total),
        schedule=training.schedule,
    )
