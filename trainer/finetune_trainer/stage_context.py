"""The arguments of every stage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.trainer_config import PreparedConfig, TrainerConfig

from .progress import ProgressReporter
from .runtime import RuntimeEnv
from .stop import StopFlag

if TYPE_CHECKING:
    from .store.client import ObjectStore


@dataclass(frozen=True)
class StageContext:
    """The configuration of a stage and the objects that it uses."""

    config: TrainerConfig
    store: "ObjectStore"
    runtime: RuntimeEnv
    report: ProgressReporter
    stop: StopFlag | None = None
    """Set by SIGTERM; None for a stage that has no state to save."""

    def prepared_config(self) -> PreparedConfig:
        """Return the configuration with the recorded result of prepare. Raises ObjectMissingError if there is none."""
        from .run_record import read_record

        return PreparedConfig.of(self.config, read_record(self.store, self.config).prepared)
