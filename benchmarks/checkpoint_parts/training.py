"""Measure the train stage.

Stage, loop, CheckpointManager and uploaders are those of the product; subclasses in this module measure times and
decide when a save may start. The baseline is a save by a Trainer of transformers with the same engine, between the same
steps: its `_save_checkpoint`, which calls `save_checkpoint` of DeepSpeed.
"""

import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainingArguments

from finetune_api.constants import Env, Stage
from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import PreparedConfig
from finetune_trainer.checkpoint.manager import CheckpointManager, TrainingState
from finetune_trainer.collectives import rank_zero
from finetune_trainer.errors import StoppedError
from finetune_trainer.logs import configure_logging
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.stop import StopFlag
from finetune_trainer.store import ObjectStore
from finetune_trainer.train import stage
from finetune_trainer.train.ds_config import deepspeed_config
from finetune_trainer.train.loop import TrainingLoop

from .plain_s3 import client, upload_folder
from .restores import restore_rounds
from .training_job import BUCKET

_WARM_UP_STEPS, _SETTLE_STEPS = 4, 2
"""Steps that are not measured: the first ones allocate memory, and those after a baseline save have cold caches."""
_CALIBRATION_SAVES, _CALIBRATION_STEPS = 4, 8
"""Before the save interval is computed. The first save starts the uploaders and is not typical."""
_IDLE_STEPS = 3
"""Before a save by DeepSpeed's writers."""


@dataclass
class Save:
    """Times of one of our checkpoints, in seconds."""

    snapshot: float
    """Duration of the call of `_save`."""
    progress: float = 0.0
    """Time at the ends of later steps, in which ranks exchange digests and complete the commit."""
    commit_latency: float = 0.0
    """Time from the snapshot until the checkpoint is committed; training continues meanwhile."""


@dataclass
class Baseline:
    """Times of a save by transformers, in seconds."""

    saving: float
    uploading: float
    """Time until the files of all ranks are in storage."""
    bytes: int
    """Size of the files that this rank wrote."""


@dataclass
class Window:
    """Consecutive steps, with or without a save; times in seconds."""

    saves: bool
    seconds: float = 0.0
    steps: int = 0
    idle: list[float] = field(default_factory=list)
    """Steps without a save in flight."""
    during_upload: list[float] = field(default_factory=list)
    """Steps during which an upload was active all the time."""


@dataclass
class Measurements:
    """Measurements of one rank."""

    saves: list[Save] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    interval_steps: int = 0
    """The automatic save interval."""
    upload_overhead: float = 0.0
    """Total seconds by which the steps during an upload take longer, as measured by the product."""


class MeasuredManager(CheckpointManager):
    """A manager whose saves are due only when the benchmark allows them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.measurements = Measurements()
        self.allowed, self.uploading = False, False
        self._save_started = 0.0

    @property
    def upload_overhead(self) -> float:
        """Upload overhead in seconds, as measured so far."""
        return self._scheduler._overhead.seconds

    def end_interval(self) -> None:
        """Make the next save due as soon as it is allowed."""
        self._scheduler._started = -math.inf

    def restart_interval(self, step: int) -> None:
        """Start the save interval at this step."""
        self._scheduler.start(step)

    def should_save(self, step: int, *, step_seconds: float) -> bool:
        return self.allowed and super().should_save(step, step_seconds=step_seconds)

    def save(self, state: TrainingState, *, step_seconds: float = 0.0, wait: bool = True) -> CommittedCheckpoint | None:
        self._save_started = time.perf_counter()
        saved = super().save(state, step_seconds=step_seconds, wait=wait)
        self.uploading = True
        return saved

    def progress(self, *, all_stored: bool, fenced: bool, error_changed: bool, too_stale: bool) -> None:
        started, was_in_flight = time.perf_counter(), self.in_flight
        super().progress(all_stored=all_stored, fenced=fenced, error_changed=error_changed, too_stale=too_stale)
        if was_in_flight and all_stored:
            self.uploading, save = False, self.measurements.saves[-1]
            save.progress += time.perf_counter() - started
            save.commit_latency = time.perf_counter() - self._save_started


class MeasuredLoop(TrainingLoop, ABC):
    """A loop that follows a `scenario`, which is advanced at the end of every step on all ranks."""

    rounds = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.parts.checkpoints, MeasuredManager)
        self.manager = self.parts.checkpoints
        self.measurements, self.window = self.manager.measurements, Window(saves=False)
        self._scenario: Iterator[None] | None = None
        self._transformers: Trainer | None = None
        endpoint = self.parts.config.storage.endpoint
        assert endpoint is not None
        self.s3 = client(endpoint)
        self.step_started, self._uploading_at_start = 0.0, False

    @abstractmethod
    def scenario(self) -> Iterator[None]:
        """Yield once per optimizer step."""

    def after_training(self) -> dict[str, Any]:
        """Return further measurements with the engine, as JSON values."""
        return {}

    def _train_step(self, micro_batches: Any) -> tuple[float, float | None]:
        if self._scenario is None:
            self._scenario = self.scenario()
            self.step_begins()
            next(self._scenario)
        return super()._train_step(micro_batches)

    def _agree(self, tokens: int, norm: float | None) -> None:
        super()._agree(tokens, norm)
        self.step_ends()
        assert self._scenario is not None
        if next(self._scenario, _FINISHED) is _FINISHED:
            raise MeasuredError(asdict(self.measurements) | self.after_training())
        self.step_begins()

    def step_begins(self) -> None:
        """Start the measurement of a step."""
        self.step_started, self._uploading_at_start = time.perf_counter(), self.manager.uploading

    def step_ends(self) -> None:
        """End the measurement of a step. It includes the communication of the ranks, but not the scenario."""
        seconds, uploading = time.perf_counter() - self.step_started, self.manager.uploading
        self.window.steps += 1
        if self._uploading_at_start and uploading:
            self.window.during_upload.append(seconds)
        elif not self.manager.in_flight and not self._uploading_at_start:
            self.window.idle.append(seconds)

    def _save(self) -> None:
        started = time.perf_counter()
        super()._save()
        self.measurements.saves.append(Save(snapshot=time.perf_counter() - started))
        self.step_begins()

    def transformers_save(self, *, upload: bool) -> None:
        """Save with transformers, upload the files that this rank wrote, and wait for the other ranks."""
        trainer = self._transformers_trainer()
        trainer.state.global_step = self.run.step
        dist.barrier()
        started = time.perf_counter()
        trainer._save_checkpoint(self.module, None)
        saved = time.perf_counter()
        folder = self._folder()
        if upload:
            upload_folder(self.s3, folder, BUCKET, f"baseline/{self.run.step}/{dist.get_rank()}")
        dist.barrier()
        ended = time.perf_counter()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.measurements.baselines.append(Baseline(saved - started, ended - saved, size))
        self.meter.resume()

    def remove_files(self) -> None:
        """Remove the files that transformers saved, including dirty pages that are not written yet."""
        shutil.rmtree(self._folder(), ignore_errors=True)
        dist.barrier()
        self.meter.resume()

    def _folder(self) -> Path:
        return Path(os.environ[Env.SCRATCH]) / "transformers"

    def _transformers_trainer(self) -> Trainer:
        """Return a Trainer with this engine, in the state after its own setup of a training."""
        if self._transformers is None:
            config = self.parts.config
            settings = deepspeed_config(config)
            arguments = TrainingArguments(
                output_dir=str(self._folder()),
                deepspeed=settings,
                use_cpu=True,
                per_device_train_batch_size=config.batch.micro_size,
                gradient_accumulation_steps=config.batch.accumulation,
                max_grad_norm=config.spec.training.max_grad_norm,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(model=self.module, args=arguments)
            trainer.model_wrapped = trainer.deepspeed = self.engine
            trainer.accelerator.deepspeed_config = settings
            trainer.optimizer, trainer.lr_scheduler = self.engine.optimizer, self.schedule
            self._transformers = trainer
        return self._transformers


class OursAndTransformers(MeasuredLoop):
    """Rounds of half an automatic interval without saves, a whole one with its save, another half, and a save by
    transformers. Changes of the machine's speed affect both sides."""

    def scenario(self) -> Iterator[None]:
        yield from self._run_steps(_WARM_UP_STEPS)
        for _ in range(_CALIBRATION_SAVES):
            yield from self._window(saves=False, steps=_CALIBRATION_STEPS)
            yield from self._window(saves=True, steps=2)
        yield from self._calibrate_interval()
        self.measurements.windows.clear()
        interval = self.measurements.interval_steps
        for _ in range(self.rounds):
            for saves, steps in ((False, interval // 2), (True, interval), (False, interval - interval // 2)):
                yield from self._window(saves=saves, steps=steps)
            self.transformers_save(upload=True)
            self.remove_files()
            yield from self._run_steps(_SETTLE_STEPS)

    def after_training(self) -> dict[str, Any]:
        return {"restores": restore_rounds(self.engine, self.parts.config, self.rounds)}

    @staticmethod
    def _run_steps(count: int) -> Iterator[None]:
        for _ in range(count):
            yield

    def _window(self, *, saves: bool, steps: int) -> Iterator[None]:
        """Run this many steps, and more while the save is in flight, because the product would also wait for it."""
        self.window, started = Window(saves=saves), time.perf_counter()
        self.manager.allowed = saves
        if saves:
            self.manager.end_interval()
        yield
        self.manager.allowed = False
        while self.window.steps < steps or self.manager.in_flight:
            yield
        self.window.seconds = time.perf_counter() - started
        self.measurements.windows.append(self.window)
        self.window = Window(saves=False)  # steps before the next window are not part of one

    def _calibrate_interval(self) -> Iterator[None]:
        """Let the product compute the save interval from the measured cost of saves."""
        self.manager.allowed = True
        self.manager.restart_interval(self.run.step)
        yield
        self.manager.allowed = False
        self.measurements.interval_steps = max(2, rank_zero(lambda: self.parts.report.progress.checkpoint_every, int))
        self.measurements.upload_overhead = self.manager.upload_overhead


class TransformersOnly(MeasuredLoop):
    """Saves by transformers without an upload, with the writer in the configuration of DeepSpeed.

    A writer that runs in the background is waited for at the end of the next step, which is in `during_upload`.
    """

    def scenario(self) -> Iterator[None]:
        for _ in range(_WARM_UP_STEPS):
            yield
        for _ in range(self.rounds):
            self.window = Window(saves=True)
            for _ in range(_IDLE_STEPS):
                yield
            self.transformers_save(upload=False)
            yield
            self.window.during_upload.append(self.window.idle.pop())
            self.measurements.windows.append(self.window)
            self.remove_files()


class MeasuredError(StoppedError):
    """Ends the stage before its export, like a stop."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__("measured")
        self.found = found


_FINISHED = object()
_SCENARIOS: dict[str, type[MeasuredLoop]] = {"ours": OursAndTransformers, "writer": TransformersOnly}


def train_rank(config: dict[str, Any], scenario: str, rounds: int) -> dict[str, Any]:
    """Run the train stage with the loop of a scenario, on the rank in the environment."""
    resolved, runtime = PreparedConfig.model_validate(config), RuntimeEnv.from_environ(os.environ)
    configure_logging(runtime.rank)
    loop = _SCENARIOS[scenario]
    loop.rounds = rounds
    stage.TrainingLoop = loop  # type: ignore[misc]
    stage.CheckpointManager = MeasuredManager  # type: ignore[misc]
    report = ProgressReporter(runtime.scratch if runtime.is_main else None, stage=Stage.TRAIN, attempt=1)
    try:
        stage.train(resolved, ObjectStore.connect(resolved.storage), runtime, report, StopFlag())
    except MeasuredError as measured:
        return measured.found
    raise AssertionError("the scenario did not end")
