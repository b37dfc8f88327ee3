"""Weights & Biases: one W&B run for each run of a job, over all attempts and evaluations, on a server or in files."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune_api.run_layout import RunLayout
from finetune_api.v1alpha1 import WandB, WandBMode

from ..store import ObjectStore
from .base import TRACKERS, LogEntry, Outcome, RunResult, Session, TrackedRun, Tracker

_API_KEY = "WANDB_API_KEY"
_START_SECONDS = 10.0
"""How long a start waits for the server, before the thread tries again."""
_END_SECONDS = 25.0
"""How long the end waits for the server: less than an evaluation waits for its trackers, which then warns why."""
_FILE_SECONDS = 60.0
"""How long the end of a training waits for the file."""
_FLUSH_SECONDS = 0.5
"""How often the service of W&B writes the file of a run; the default is 15 s."""


@TRACKERS.register
class WandBTracker(Tracker):
    """`spec.tracking.wandb`."""

    name: ClassVar[str] = "wandb"
    module: ClassVar[str] = "wandb"
    distribution: ClassVar[str] = "wandb"
    has_results: ClassVar[bool] = True

    def end_seconds_with(self, block: WandB) -> float:
        """A file depends only on the storage of the run, which the export needs as well."""
        return _FILE_SECONDS if block.mode is WandBMode.OFFLINE else self.end_seconds

    def open(self, block: WandB, run: TrackedRun, store: ObjectStore, scratch: Path) -> Session:
        """Start the W&B run, or continue it on the server."""
        library = _library(scratch)
        try:
            started = library.init(settings=_settings(block, run, scratch), config={**run.parameters, **run.tags})
        except Exception:
            _stop_service()  # it would refuse to start the same run again
            raise
        if block.mode is WandBMode.ONLINE:
            return _WandBRun(started)
        return _WandBFile(started, RunLayout(run.uri).wandb, store)


class _WandBRun(Session):
    """A W&B run on a server.

    W&B adds a row for each step, and a row cannot be changed. Steps that the server already has are therefore left out,
    and the newest row is sent when its step is complete: the validation of a step is an entry of its own.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._next: int = run.starting_step
        """First step that the server does not have."""
        self._row: dict[str, float] = {}
        self._step = 0
        """Of the row."""

    def log(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            if entry.step < self._next:
                continue
            if entry.step != self._step:
                self._send_row()
            self._step = entry.step
            self._row |= {**entry.metrics, "epoch": entry.values["epoch"], "_timestamp": entry.time}

    def _send_row(self) -> None:
        if self._row:
            self._run.log(self._row, step=self._step, commit=True)
            self._row, self._next = {}, self._step + 1

    def saved(self) -> None:
        """Do nothing: everything but the newest row was sent, and the log of the checkpoint has that."""

    def result(self, result: RunResult) -> None:
        self._send_row()
        self._run.summary.update(dict(result.metrics))
        self._run.config.update(dict(result.tags), allow_val_change=True)

    def end(self, outcome: Outcome) -> None:
        # Otherwise the next attempt or evaluation sends the newest row, and its step may be validated before.
        if outcome in {Outcome.TRAINED, Outcome.EVALUATED}:
            self._send_row()
        elif outcome is Outcome.STOPPED:
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=0 if outcome in {Outcome.TRAINED, Outcome.EVALUATED} else 1)
        finally:
            _stop_service()


class _WandBFile(_WandBRun):
    """A W&B run in a file. One file per session, with the whole curve, which replaces those of earlier sessions.

    `wandb sync` begins a run at its first row, so that it may be used again with a newer file.
    """

    def __init__(self, run: Any, folder: str, store: ObjectStore) -> None:
        super().__init__(run)
        self._path = Path(run.settings.sync_file)
        self._folder = folder
        self._store = store

    def saved(self) -> None:
        self._send_row()
        time.sleep(2 * _FLUSH_SECONDS)  # the service writes the file, and has no request to do so
        self._upload()

    def end(self, outcome: Outcome) -> None:
        self._send_row()
        super().end(outcome)  # the service has closed the file when it has exited
        self._upload()

    def _upload(self) -> None:
        """Store the file, then remove earlier ones. Those of later sessions stay: they may own the run."""
        name = self._path.parent.name  # begins with offline-run- and the time of the start
        self._store.upload(self._path, f"{self._folder}/{name}/{self._path.name}")
        prefix = f"{self._folder}/"
        earlier = [info.uri for info in self._store.list(prefix) if info.uri.removeprefix(prefix) < name]
        self._store.delete_many(earlier)


def _library(scratch: Path) -> Any:
    """Import the library so that it takes its settings from nothing but the arguments of `init`.

    Variables and files of W&B may enable what `_settings` disables, or redirect requests.
    """
    if "wandb" not in sys.modules:
        ignored = [name for name in os.environ if name.startswith(("WANDB_", "_WANDB_")) and name != _API_KEY]
        for name in ignored:
            del os.environ[name]
        folders = {f"WANDB_{kind}_DIR": str(scratch / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        # Error reporting is also the switch of all telemetry.
        os.environ.update({"WANDB_ERROR_REPORTING": "false", **folders})
    import wandb

    return wandb


def _stop_service() -> None:
    """Wait until the process that writes and sends has exited. The next run starts another one."""
    try:
        sys.modules["wandb"].teardown()
    except SystemExit as ended:
        raise RuntimeError(f"the service of W&B exited with code {ended.code}") from ended


def _settings(block: WandB, run: TrackedRun, scratch: Path) -> Any:
    """Raises ValueError if the API key is missing."""
    online: Mapping[str, Any] = {}
    if block.mode is WandBMode.ONLINE:
        key = os.environ.get(_API_KEY)
        if not key:
            raise ValueError(f"{_API_KEY} is not set; set it in spec.workers.env from a Secret")
        # The file of a run without a server begins at its first row, and must not be added to an earlier one.
        online = {"api_key": key, "base_url": str(block.base_url).rstrip("/"), "resume": "allow"}
    return _library(scratch).Settings(
        mode=block.mode.lower(),
        project=block.project,
        entity=block.entity,
        run_id=run.key,
        run_name=run.name,
        root_dir=str(scratch),
        **online,
        config_paths=(),
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=_END_SECONDS,
        finish_timeout_raises=True,
        host="",
        init_timeout=_START_SECONDS,
        label_disable=True,
        program="",
        reinit="create_new",
        sagemaker_disable=True,
        save_code=False,
        silent=True,
        stop_fn=_ignore_stop,
        symlink=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
    )


def _ignore_stop() -> None:
    """Ignore a request of the server to stop, for which the library would interrupt the training."""
