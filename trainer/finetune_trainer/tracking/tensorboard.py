"""Event files for TensorBoard, in the folder of the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune_api.run_layout import RunLayout

from ..store import ObjectStore
from .base import TRACKERS, LogEntry, Outcome, RunResult, Session, TrackedRun, Tracker


@TRACKERS.register
class TensorBoardTracker(Tracker):
    """`spec.tracking.tensorBoard`."""

    name: ClassVar[str] = "tensorBoard"
    module: ClassVar[str] = "tensorboard"
    distribution: ClassVar[str] = "tensorboard"
    has_results: ClassVar[bool] = False
    end_seconds: ClassVar[float] = 60.0  # the storage of the run, which the export needs as well

    def open(self, block: Any, run: TrackedRun, store: ObjectStore, scratch: Path) -> Session:
        """Start an event file."""
        del block
        return _EventFile(run, store, scratch)


class _EventFile(Session):
    """One file per attempt, with the whole curve.

    The log of a checkpoint has all entries up to its step, so the file of an attempt repeats them and replaces the
    files of earlier attempts. Steps that an attempt trained after its checkpoint are therefore neither lost nor shown
    twice, whatever the attempt had uploaded when it ended.
    """

    def __init__(self, run: TrackedRun, store: ObjectStore, scratch: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store = store
        self._folder = RunLayout(run.uri).tensorboard
        self._scratch = scratch
        self._name = f"events.out.tfevents.{run.attempt:06d}.{run.generation:03d}"
        # A TensorBoard that has read an earlier file forgets its steps at the start of this one.
        self._writer: Any = SummaryWriter(log_dir=str(scratch), purge_step=0)
        self._has_removed = False

    def log(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            for name, value in entry.metrics.items():
                self._writer.add_scalar(name, value, global_step=entry.step, walltime=entry.time)

    def saved(self) -> None:
        self._writer.flush()
        (path,) = self._scratch.glob("events.out.tfevents.*")
        self._store.upload(path, f"{self._folder}/{self._name}")
        if not self._has_removed:
            self._remove_earlier()
            self._has_removed = True

    def result(self, result: RunResult) -> None:
        raise NotImplementedError("event files have the training only")

    def end(self, outcome: Outcome) -> None:
        del outcome
        self.saved()
        self._writer.close()

    def _remove_earlier(self) -> None:
        """Remove files of earlier attempts. Those of later ones stay: this attempt may have lost the run to one."""
        prefix = f"{self._folder}/"
        earlier = [info.uri for info in self._store.list(prefix) if info.uri.removeprefix(prefix) < self._name]
        self._store.delete_many(earlier)
