"""The small state of a training: everything in a checkpoint except for parameters, moments and random generators."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from .loss_watch import LossWatch
from .overfitting import OverfittingWatch
from .plateau import PlateauState
from .stopping import BestState


@dataclass
class RunState:
    """What a training continues with, the same on every rank."""

    step: int = 0
    """Optimizer steps since the start of the run."""
    tokens: int = 0
    """Tokens without padding since the start of the run, over all ranks."""
    log: list[dict[str, float]] = field(default_factory=list)
    """Metrics since the start of the run, oldest first. Each entry has `step` and `epoch`."""
    last_logged_step: int = 0
    loss_since_log: tuple[float, ...] = ()
    """Summed training loss of the steps after `last_logged_step`, by rank; set when the state is saved."""
    best: BestState = field(default_factory=BestState)
    loss_watch: LossWatch = field(default_factory=LossWatch)
    overfitting: OverfittingWatch = field(default_factory=OverfittingWatch)
    plateau: PlateauState = field(default_factory=PlateauState)
    stopped_early: bool = False
    finished: bool = False
    """Only the export is left."""
    evaluation_due: bool = False
    """A stop has skipped or interrupted the validation of this step; the next attempt starts with it."""

    def loss_of_rank(self, rank: int, world: int) -> float:
        """Return `loss_since_log` of a rank, or after a change of the world size the mean, which gives the same logged
        loss."""
        if len(self.loss_since_log) == world:
            return self.loss_since_log[rank]
        return sum(self.loss_since_log) / len(self.loss_since_log)


def small_state(run: RunState, schedule: LambdaLR) -> dict[str, Any]:
    """Return the state as a JSON object."""
    stored = dataclasses.asdict(run)
    # What is not used is left out, so that an earlier version of the trainer can resume.
    stored["overfitting"] = run.overfitting.stored()
    if run.overfitting == OverfittingWatch():
        del stored["overfitting"]
    if run.plateau == PlateauState():
        del stored["plateau"]
    return {"run": stored, "schedule": schedule.state_dict()}


def read_small_state(stored: dict[str, Any]) -> tuple[RunState, dict[str, Any]]:
    """Return the state of a run, and that of the schedule for `resume_schedule`."""
    run = dict(stored["run"])
    if "trainer" in stored:  # written while transformers' Trainer ran the loop
        trainer, losses = stored["trainer"], stored["losses"]
        run |= {"step": trainer["global_step"], "log": trainer["log_history"]}
        run |= {"last_logged_step": losses["last_logged_step"], "loss_since_log": losses["since_log"]}
    # Checkpoints of earlier versions have no loss watch.
    nested = {
        "best": BestState(**run["best"]),
        "loss_watch": LossWatch(**run.get("loss_watch", {})),
        "overfitting": OverfittingWatch.of(run.get("overfitting", {})),
        "plateau": PlateauState(**run.get("plateau", {})),
    }
    run |= nested | {"loss_since_log": tuple(run["loss_since_log"])}
    return RunState(**run), stored["schedule" if "schedule" in stored else "scheduler"]


def resume_schedule(schedule: LambdaLR, stored: dict[str, Any]) -> None:
    """Continue a learning rate schedule at its stored position, with the base learning rates of this attempt.

    `LambdaLR.load_state_dict` alone would restore the stored rates and ignore a learning rate that is set for this
    attempt. With the same base rates, the result equals the stored rates to the last bit.
    """
    schedule.load_state_dict(stored | {"base_lrs": list(schedule.base_lrs)})
    apply_rates(schedule)


def apply_rates(schedule: LambdaLR) -> None:
    """Set the learning rates of the next step again, because its position or factors have changed."""
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
    schedule.load_state_dict(schedule.state_dict() | {"_last_lr": rates})
    for options, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if isinstance(options["lr"], torch.Tensor):
            options["lr"].fill_(rate)
        else:
            options["lr"] = rate
