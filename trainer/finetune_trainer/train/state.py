"""The small state of a training: everything in a checkpoint except for parameters, moments and random generators."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState

from .loss_watch import LossWatch
from .stopping import BestState


@dataclass
class RunState:
    """State of a run that the Trainer does not keep."""

    tokens: int = 0
    """Tokens without padding since the first step of the run, over all ranks."""
    best: BestState = field(default_factory=BestState)
    loss_watch: LossWatch = field(default_factory=LossWatch)
    stopped_early: bool = False
    finished: bool = False
    """Only the export is left."""
    evaluation_due: bool = False
    """A stop has skipped or interrupted the validation of this step; the next attempt starts with it."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that is saved in a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RunState":
        """The inverse of `to_json`."""
        # Checkpoints of earlier versions have no loss watch.
        nested = {"best": BestState(**value["best"]), "loss_watch": LossWatch(**value.get("loss_watch", {}))}
        return cls(**{**value, **nested})


@dataclass(frozen=True)
class LossSums:
    """The Trainer's accumulators between two log lines, which transformers does not restore."""

    since_log: tuple[float, ...]
    """Summed loss since the last log line, by rank."""
    logged: float
    last_logged_step: int

    def of_rank(self, rank: int, world: int) -> float:
        """Return the sum of a rank, or after a change of the world size the mean, which gives the same logged loss."""
        if len(self.since_log) == world:
            return self.since_log[rank]
        return sum(self.since_log) / len(self.since_log)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LossSums":
        """The inverse of `dataclasses.asdict`, through JSON."""
        return cls(tuple(value["since_log"]), value["logged"], value["last_logged_step"])


def small_state(
    *, trainer_state: TrainerState, scheduler: dict[str, Any], losses: LossSums, run: RunState
) -> dict[str, Any]:
    """Return the state as a JSON object. It includes the log history, so that the log covers the whole run."""
    return {
        "trainer": dataclasses.asdict(trainer_state),
        "scheduler": scheduler,
        "losses": dataclasses.asdict(losses),
        "run": run.to_json(),
    }


def resume_schedule(schedule: LambdaLR, stored: dict[str, Any]) -> None:
    """Continue a learning rate schedule at its stored position, with the base learning rates of this attempt.

    `LambdaLR.load_state_dict` alone would restore the stored rates and ignore a learning rate that is set for this
    attempt. With the same base rates, the result equals the stored rates to the last bit.
    """
    base, position = list(schedule.base_lrs), stored["last_epoch"]
    rates = [rate * factor(position) for rate, factor in zip(base, schedule.lr_lambdas, strict=True)]
    schedule.load_state_dict(stored | {"base_lrs": base, "_last_lr": rates})
    for options, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if isinstance(options["lr"], torch.Tensor):
            options["lr"].fill_(rate)
        else:
            options["lr"] = rate
