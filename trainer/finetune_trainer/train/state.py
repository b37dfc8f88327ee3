"""The small state of a training: all that a checkpoint holds beside parameters, moments and random generators."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerState

from .loss_watch import LossWatch
from .stopping import BestState


@dataclass
class RunState:
    """What the Trainer itself does not count."""

    tokens: int = 0
    """Tokens without padding since the first step of the run, over all ranks."""
    best: BestState = field(default_factory=BestState)
    loss_watch: LossWatch = field(default_factory=LossWatch)
    stopped_early: bool = False
    finished: bool = False
    """True: nothing is left but the export."""
    evaluation_due: bool = False
    """The validation of this step was left out or interrupted by a stop; the next attempt begins with it."""

    def to_json(self) -> dict[str, Any]:
        """As the checkpoint keeps it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RunState":
        """The inverse of `to_json`."""
        # Checkpoints of earlier versions have no loss watch.
        nested = {"best": BestState(**value["best"]), "loss_watch": LossWatch(**value.get("loss_watch", {}))}
        return cls(**{**value, **nested})


@dataclass(frozen=True)
class LossSums:
    """The Trainer's accumulators between two log lines; transformers forgets them on a resume."""

    since_log: tuple[float, ...]
    """Summed loss since the last log line, by rank."""
    logged: float
    last_logged_step: int

    def of_rank(self, rank: int, world: int) -> float:
        """A rank's own sum; after a change of the world the mean, which logs the same loss."""
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
    """One JSON object; log history included, so that the log covers the whole run."""
    return {
        "trainer": dataclasses.asdict(trainer_state),
        "scheduler": scheduler,
        "losses": dataclasses.asdict(losses),
        "run": run.to_json(),
    }
