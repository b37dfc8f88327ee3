"""The product's train stage with a watch in its hand.

Stage, Trainer, saves, plane and uploaders are the product's; subclasses here take times and say when a save may come.
The baseline is saved by the same Trainer object with what transformers itself does: `_save_checkpoint` of its Trainer,
hence DeepSpeed's `save_checkpoint`, on the same engine, between the same steps.
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
from transformers import TrainerCallback

from finetune_api.constants import Stage
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoint.engine.collective import rank_zero
from finetune_trainer.checkpoint.plane import CheckpointPlane
from finetune_trainer.checkpoint.training_state import TrainingState
from finetune_trainer.errors import StoppedError
from finetune_trainer.logs import configure_logging
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.stop import StopFlag
from finetune_trainer.store import ObjectStore
from finetune_trainer.train import stage
from finetune_trainer.train.plan import TrainingPlan
from finetune_trainer.train.saves import Saves
from finetune_trainer.train.trainer import FineTuneTrainer

from .plain_s3 import client, upload_folder
from .restores import restore_rounds
from .subject import BUCKET

_WARM_UP_STEPS, _SETTLE_STEPS = 4, 2
"""Left out: the first steps allocate, and those after a baseline save find cold caches."""
_LEARNT_SAVES, _LEARNT_STEPS = 4, 8
"""Before the cadence is asked for: of the first save, which starts the uploaders, it learns little."""
_QUIET_STEPS = 3
"""Before a save of DeepSpeed's writers."""


@dataclass
class Save:
    """What one of our checkpoints kept the training from, in seconds."""

    snapshot: float
    """`_save_checkpoint`, from its call to its return."""
    moving_on: float = 0.0
    """Within the ends of later steps, where ranks exchange digests and learn of the commit."""
    landing: float = 0.0
    """From the snapshot until the checkpoint exists: no stall."""


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
    """What the automatic cadence came to."""
    drag: float = 0.0
    """Of what it knew then: seconds that steps beside an upload take longer, all together."""


class WatchedSaves(Saves):
    """The clock asks only where the benchmark lets it."""

    def __init__(self, plan: TrainingPlan, plane: CheckpointPlane, report: ProgressReporter, watch: Watch) -> None:
        super().__init__(plan, plane, report)
        self.allowed, self.uploading = False, False
        self._watch, self._taken = watch, 0.0

    @property
    def drag_seconds(self) -> float:
        """As it is known."""
        return self._drag.seconds

    def end_interval(self) -> None:
        """The next save is due as soon as it is allowed."""
        self._begun = -math.inf

    def are_due(self, step: int, *, step_seconds: float) -> bool:
        return self.allowed and super().are_due(step, step_seconds=step_seconds)

    def take(self, state: TrainingState, *, step_seconds: float, waits: bool) -> None:
        self._taken = time.perf_counter()
        super().take(state, step_seconds=step_seconds, waits=waits)
        self.uploading = True

    def move_on(self, *, all_stored: bool, refused: bool) -> None:
        started, flies = time.perf_counter(), self._plane.saver.in_flight
        super().move_on(all_stored=all_stored, refused=refused)
        if flies and all_stored:
            self.uploading, save = False, self._watch.saves[-1]
            save.moving_on += time.perf_counter() - started
            save.landing = time.perf_counter() - self._taken


class WatchedTrainer(FineTuneTrainer, ABC):
    """`story` decides what happens after each step; it is advanced at the end of every step, on every rank alike."""

    rounds = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch, self.window = Watch(), Window(saves=False)
        self.watched = WatchedSaves(self.parts.plan, self.parts.plane, self.parts.report, self.watch)
        self.saves = self.watched
        self.add_callback(_Clock(self))
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

    def train(self, *args: Any, **kwargs: Any) -> Any:
        super().train(*args, **kwargs)
        raise MeasuredError(asdict(self.watch) | self.after_training())

    def step_begins(self) -> None:
        """Now; what has been before is no part of a step."""
        self.since, self._uploading_since = time.perf_counter(), self.watched.uploading

    def step_ends(self) -> None:
        """Now; the exchange of the ranks is in it, what a story does is not."""
        seconds, uploading = time.perf_counter() - self.since, self.watched.uploading
        self.window.steps += 1
        if self._uploading_since and uploading:
            self.window.beside.append(seconds)
        elif not self.parts.plane.saver.in_flight and not self._uploading_since:
            self.window.quiet.append(seconds)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.watch.saves.append(Save(snapshot=time.perf_counter() - started))
        self.step_begins()

    def transformers_save(self, *, upload: bool) -> None:
        """Save as transformers does, upload every file that this rank wrote, and wait for the other ranks."""
        folder = Path(self.args.output_dir)
        dist.barrier()
        started = time.perf_counter()
        super(FineTuneTrainer, self)._save_checkpoint(self.model, None)
        saved = time.perf_counter()
        if upload:
            upload_folder(self.s3, folder, BUCKET, f"baseline/{self.state.global_step}/{self.args.process_index}")
        dist.barrier()
        ended = time.perf_counter()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.watch.baselines.append(Baseline(saved - started, ended - saved, size))
        self.meter.resume()

    def forget_files(self) -> None:
        """Remove what transformers has saved: disk, and pages that would still have to be written."""
        shutil.rmtree(self.args.output_dir, ignore_errors=True)
        dist.barrier()
        self.meter.resume()


class OursAndTransformers(WatchedTrainer):
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
        """So many steps, and more if the save is still in flight then: the cadence would wait for it, too."""
        self.window, started = Window(saves=saves), time.perf_counter()
        self.watched.allowed = saves
        if saves:
            self.watched.end_interval()
        yield
        self.watched.allowed = False
        while self.window.steps < steps or self.parts.plane.saver.in_flight:
            yield
        self.window.seconds = time.perf_counter() - started
        self.watch.windows.append(self.window)
        self.window = Window(saves=False)  # what comes before the next one is of none

    def _learn_interval(self) -> Iterator[None]:
        """Let the product work out the cadence, of what the saves so far have cost."""
        self.watched.allowed = True
        self.watched.start(self.state.global_step)
        yield
        self.watched.allowed = False
        self.watch.interval_steps = max(2, rank_zero(lambda: self.parts.report.progress.checkpoint_every, int))
        self.watch.drag = self.watched.drag_seconds


class TransformersOnly(WatchedTrainer):
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


class _Clock(TrainerCallback):
    """Comes after the product's own callback."""

    def __init__(self, trainer: WatchedTrainer) -> None:
        self._trainer = trainer
        self._story: Iterator[None] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._story is None:
            self._story = self._trainer.story()
            self._trainer.step_begins()
            next(self._story)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._story is not None
        self._trainer.step_ends()
        if next(self._story, _OVER) is _OVER:
            control.should_training_stop = True
        self._trainer.step_begins()


_OVER = object()
_STORIES: dict[str, type[WatchedTrainer]] = {"ours": OursAndTransformers, "writer": TransformersOnly}


def train_rank(config: dict[str, Any], story: str, rounds: int) -> dict[str, Any]:
    """The train stage with the story's Trainer, on the rank that the environment names."""
    resolved, runtime = TrainerConfig.model_validate(config), RuntimeEnv.from_environ(os.environ)
    configure_logging(runtime.rank)
    trainer = _STORIES[story]
    trainer.rounds = rounds
    stage.FineTuneTrainer = trainer  # type: ignore[misc]
    report = ProgressReporter(runtime.scratch if runtime.is_main else None, stage=Stage.TRAIN, attempt=1)
    try:
        stage.train(resolved, ObjectStore.connect(resolved.storage), runtime, report, StopFlag())
    except MeasuredError as measured:
        return measured.found
    raise AssertionError("the story has no end")
