"""Ranks of the campaign: the real train stage with small blobs, and a record of the time of each step."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOB_BYTES = 64 << 10
"""Small enough that a tiny model's part has several blobs."""
TARGET = f"{__name__}:train_rank"
PAUSE_SECONDS = 0.1
"""Pause after each step, which itself takes a few hundredths of a second: a run lasts as long as its kills need, and
uses the processors for a third of that time."""


class StepClock:
    """A StopFlag that is never set. On rank 0 it records the time after each step in a file; then it pauses."""

    def __init__(self, path: Path, report: Any, *, is_main: bool) -> None:
        self._file = path.open("a", buffering=1) if is_main else None
        self._report = report

    @property
    def requested(self) -> bool:
        """Read by every rank at the end of every step, before that step is reported."""
        progress = self._report.progress
        if self._file is not None and progress.total_steps:  # set when training starts
            self._file.write(f"{progress.step + 1} {time.monotonic():.4f}\n")
        time.sleep(PAUSE_SECONDS)
        return False


def step_times(scratch: Path) -> list[tuple[int, float]]:
    """Optimizer steps of one attempt, and the times when they completed."""
    path = scratch / "steps"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(step), float(moment)) for step, moment in (line.split() for line in lines)]


def train_rank(config: Path) -> int:
    """Like `rank_main.run_rank`, but with the result of prepare in the configuration."""
    from finetune_trainer.rank_main import run_bound

    def bind(config: Any, runtime: Any, report: Any) -> Callable[[], Any]:
        from finetune_api.trainer_config import PreparedConfig
        from finetune_trainer.checkpoint import save_interval
        from finetune_trainer.checkpoint.manager import CheckpointManager
        from finetune_trainer.store.client import ObjectStore
        from finetune_trainer.train import stage

        class SmallBlobs(CheckpointManager):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, blob_bytes=BLOB_BYTES, **kwargs)

        vars(stage)["CheckpointManager"] = SmallBlobs
        vars(save_interval)["MAX_OVERHEAD"] = math.inf  # steps take a few milliseconds, so frequent saves cost more
        clock = StepClock(runtime.scratch / "steps", report, is_main=runtime.is_main)
        store = ObjectStore.connect(config.storage)
        prepared = PreparedConfig.of(config, config.prepared)
        return lambda: stage.train(prepared, store, runtime, report, clock)  # type: ignore[arg-type]

    return run_bound(config, bind)
