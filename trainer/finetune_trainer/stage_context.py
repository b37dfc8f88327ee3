"""What every stage is given."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.trainer_config import TrainerConfig

from .progress import ProgressReporter
from .runtime import RuntimeEnv
from .stop import StopFlag

if TYPE_CHECKING:
    from .store.client import ObjectStore


@dataclass(frozen=True)
class StageContext:
    """The configuration of a stage, and what it works with."""

    config: TrainerConfig
    store: "ObjectStore"
    runtime: RuntimeEnv
    report: ProgressReporter
    stop: StopFlag | None = None
    """Set by SIGTERM, for a stage that has state to save."""

    def prepared_config(self) -> TrainerConfig:
        """The configuration with what prepare has recorded of the run. Raises BadDataError where it has not run."""
        from .run_record import read_record

        return self.config.model_copy(update={"prepared": read_record(self.store, self.config).prepared})
