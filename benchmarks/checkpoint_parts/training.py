"""The product's train stage, measured.

Stage, loop, CheckpointManager and uploaders are the product's; subclasses here take times and say when a save may
start. The baseline is saved by a Trainer of transformers around the same engine, between the same steps: its
`_save_checkpoint`, hence DeepSpeed's `save_checkpoint`.
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
from finetune_trainer.checkpoint.engine.collective import rank_zero
from finetune_trainer.checkpoint.manager import CheckpointManager, TrainingState
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
from .subject import BUCKET

_WARM_UP_STEPS, _SETTLE_STEPS = 4, 2
"""Left out: the first steps allocate, and those after a baseline save find cold caches."""
_LEARNT_SAVES, _LEARNT_STEPS = 4, 8
"""Before the save interval is computed: the first save, which starts the uploaders, is not typical."""
_QUIET_STEPS = 3
"""Before a save of DeepSpeed's writers."""


@dataclass
class Save:
    """What one of our checkpoints kept the training from, in seconds."""

    snapshot: float
    """`_save`, from its call to its return."""
    progress: float = 0.0
    """Within the ends of later steps, where ranks exchange digests and learn of the commit."""
    commit_latency: float = 0.0
    """From the snapshot until the checkpoint is committed: no stall."""


@dataclass
class Baseline:
    """The same of a save of transformers'."""

    saving: float
    uploading: float
    """Until the last rank's files are in storage."""
    bytes: int
    """Of the files that this rank wrote."""


@dataclass
class Window:
    """Consecutive steps with the save between them, in seconds."""

    saves: bool
    seconds: float = 0.0
    steps: int = 0
    quiet: list[float] = field(default_factory=list)
    """Steps with nothing in flight."""
    beside: list[float] = field(default_factory=list)
    """Steps beside an upload that lasted longer than they did."""


@dataclass
class Watch:
    """What a rank has seen."""

    saves: list[Save] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    interval_steps: int = 0
    """The automatic save interval."""
    upload_overhead: float = 0.0
    """Measured until then: seconds by which the steps during an upload take longer, in total."""


class WatchedManager(CheckpointManager):
    """A save is due only when the benchmark allows it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = Watch()
        self.allowed, self.uploading = False, False
        self._taken = 0.0

    @property
    def upload_overhead(self) -> float:
        """In seconds, as measured so far."""
        return self._scheduler._overhead.seconds

    def end_interval(self) -> None:
        """The next save is due as soon as it is allowed."""
        self._scheduler._started = -math.inf

    def restart_interval(self, step: int) -> None:
        """The interval starts now."""
        self._scheduler.start(step)

    def should_save(self, step: int, *, step_seconds: float) -> bool:
        return self.allowed and super().should_save(step, step_seconds=step_seconds)

    def save(self, state: TrainingState, *, step_seconds: float = 0.0, wait: bool = True) -> CommittedCheckpoint | None:
        self._taken = time.perf_counter()
        saved = super().save(state, step_seconds=step_seconds, wait=wait)
        self.uploading = True
        return saved

    def progress(self, *, all_stored: bool, fenced: bool, error_changed: bool, too_stale: bool) -> None:
        started, was_in_flight = time.perf_counter(), self.in_flight
        super().progress(all_stored=all_stored, fenced=fenced, error_changed=error_changed, too_stale=too_stale)
        if was_in_flight and all_stored:
            self.uploading, save = False, self.watch.saves[-1]
            save.progress += time.perf_counter() - started
            save.commit_latency = time.perf_counter() - self._taken


class WatchedLoop(TrainingLoop, ABC):
    """`story` decides what happens after each step; it is advanced at the end of every step, on every rank alike."""

    rounds = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.parts.checkpoints, WatchedManager)
        self.watched = self.parts.checkpoints
        self.watch, self.window = self.watched.watch, Window(saves=False)
        self._advance: Iterator[None] | None = None
        self._transformers: Trainer | None = None
        endpoint = self.parts.config.storage.endpoint
        assert endpoint is not None
        self.s3 = client(endpoint)
        self.since, self._uploading_since = 0.0, False

    @abstractmethod
    def story(self) -> Iterator[None]:
        """Every `yield` is an optimizer step."""

    def after_training(self) -> dict[str, Any]:
        """What else is measured with the engine; JSON."""
        return {}

    def _train_step(self, micro_batches: Any) -> tuple[float, float | None]:
        if self._advance is None:
            self._advance = self.story()
            self.step_begins()
            next(self._advance)
        return super()._train_step(micro_batches)

    def _agree(self, tokens: int, norm: float | None) -> None:
        super()._agree(tokens, norm)
        self.step_ends()
        assert self._advance is not None
        if next(self._advance, _OVER) is _OVER:
            raise MeasuredError(asdict(self.watch) | self.after_training())
        self.step_begins()

    def step_begins(self) -> None:
        """Now; what has been before is no part of a step."""
        self.since, self._uploading_since = time.perf_counter(), self.watched.uploading

    def step_ends(self) -> None:
        """Now; the exchange of the ranks is in it, what a story does is not."""
        seconds, uploading = time.perf_counter() - self.since, self.watched.uploading
        self.window.steps += 1
        if self._uploading_since and uploading:
            self.window.beside.append(seconds)
        elif not self.watched.in_flight and not self._uploading_since:
            self.window.quiet.append(seconds)

    def _save(self) -> None:
        started = time.perf_counter()
        super()._save()
        self.watch.saves.append(Save(snapshot=time.perf_counter() - started))
        self.step_begins()

    def transformers_save(self, *, upload: bool) -> None:
        """Save as transformers does, upload every file that this rank wrote, and wait for the other ranks."""
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
        self.watch.baselines.append(Baseline(saved - started, ended - saved, size))
        self.meter.resume()

    def forget_files(self) -> None:
        """Remove what transformers has saved: disk, and pages that would still have to be written."""
        shutil.rmtree(self._folder(), ignore_errors=True)
        dist.barrier()
        self.meter.resume()

    def _folder(self) -> Path:
        return Path(os.environ[Env.SCRATCH]) / "transformers"

    def _transformers_trainer(self) -> Trainer:
        """A Trainer with this engine, as after its own preparation of a training."""
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


class OursAndTransformers(WatchedLoop):
    """Rounds of: half an automatic interval without saves, a whole one with its save, the other half, a save of
    transformers'. A machine that grows slower, or faster, in steps or little by little, does so on both sides."""

    def story(self) -> Iterator[None]:
        yield from self._steps(_WARM_UP_STEPS)
        for _ in range(_LEARNT_SAVES):
            yield from self._window(saves=False, steps=_LEARNT_STEPS)
            yield from self._window(saves=True, steps=2)
        yield from self._learn_interval()
        self.watch.windows.clear()
        interval = self.watch.interval_steps
        for _ in range(self.rounds):
            for saves, steps in ((False, interval // 2), (True, interval), (False, interval - interval // 2)):
                yield from self._window(saves=saves, steps=steps)
            self.transformers_save(upload=True)
            self.forget_files()
            yield from self._steps(_SETTLE_STEPS)

    def after_training(self) -> dict[str, Any]:
        return {"restores": restore_rounds(self.engine, self.parts.config, self.rounds)}

    @staticmethod
    def _steps(count: int) -> Iterator[None]:
        for _ in range(count):
            yield

    def _window(self, *, saves: bool, steps: int) -> Iterator[None]:
        """This many steps, and more if the save is still in flight then: the product would wait for it, too."""
        self.window, started = Window(saves=saves), time.perf_counter()
        self.watched.allowed = saves
        if saves:
            self.watched.end_interval()
        yield
        self.watched.allowed = False
        while self.window.steps < steps or self.watched.in_flight:
            yield
        self.window.seconds = time.perf_counter() - started
        self.watch.windows.append(self.window)
        self.window = Window(saves=False)  # what comes before the next one is of none

    def _learn_interval(self) -> Iterator[None]:
        """Let the product compute the save interval from what the saves so far have cost."""
        self.watched.allowed = True
        self.watched.restart_interval(self.run.step)
        yield
        self.watched.allowed = False
        self.watch.interval_steps = max(2, rank_zero(lambda: self.parts.report.progress.checkpoint_every, int))
        self.watch.upload_overhead = self.watched.upload_overhead


class TransformersOnly(WatchedLoop):
    """Saves of transformers' without an upload, through the writer that DeepSpeed was configured with.

    One that writes beside the training is waited for at the end of the next step: that is in `beside`.
    """

    def story(self) -> Iterator[None]:
        for _ in range(_WARM_UP_STEPS):
            yield
        for _ in range(self.rounds):
            self.window = Window(saves=True)
            for _ in range(_QUIET_STEPS):
                yield
            self.transformers_save(upload=False)
            yield
            self.window.beside.append(self.window.quiet.pop())
            self.watch.windows.append(self.window)
            self.forget_files()


class MeasuredError(StoppedError):
    """Ends the stage before its export, as a stop would."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__("measured")
        self.found = found


_OVER = object()
_STORIES: dict[str, type[WatchedLoop]] = {"ours": OursAndTransformers, "writer": TransformersOnly}


def train_rank(config: dict[str, Any], story: str, rounds: int) -> dict[str, Any]:
    """The train stage with the story's loop, on the rank that the environment names."""
    resolved, runtime = PreparedConfig.model_validate(config), RuntimeEnv.from_environ(os.environ)
    configure_logging(runtime.rank)
    loop = _STORIES[story]
    loop.rounds = rounds
    stage.TrainingLoop = loop  # type: ignore[misc]
    stage.CheckpointManager = WatchedManager  # type: ignore[misc]
    report = ProgressReporter(runtime.scratch if runtime.is_main else None, stage=Stage.TRAIN, attempt=1)
    try:
        stage.train(resolved, ObjectStore.connect(resolved.storage), runtime, report, StopFlag())
    except MeasuredError as measured:
        return measured.found
    raise AssertionError("the story has no end")
