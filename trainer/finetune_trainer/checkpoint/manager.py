"""CheckpointManager: the checkpoints of a training run. The only interface to this package for training.

The path of a save: `should_save` at the end of a step, `save` takes the snapshot (staging), the uploader process of
each rank uploads it (`upload.uploader`), and `progress` at the end of later steps commits it. `restore` loads the
newest usable checkpoint with any number of ranks (load-time resharding).
"""

import logging
import math
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig

from ..collectives import all_ranks, gather_all, rank_zero
from ..errors import CorruptCheckpointError, StorageUnreachableError
from ..progress import ProgressReporter
from ..runtime import RuntimeEnv
from ..store import ObjectStore
from .async_saver import AsyncSaver, TrainingState
from .engine import buffers, optimizer_state, rng
from .format.compatibility import Lineage
from .format.layout import OPTIMIZER_STATE_ARRAYS
from .format.manifest import Manifest, State
from .format.orders import Setup
from .format.retention import Keep
from .pruner import CheckpointPruner
from .save_interval import SavePolicy
from .scheduler import CheckpointScheduler
from .stored.blobs import Origin
from .stored.loading import Loader
from .stored.run_storage import RunStorage
from .upload.client import UploaderClient, UploaderProcess

__all__ = ["CheckpointManager", "Restored", "TrainingState", "UploadStatus"]

log = logging.getLogger("finetune")

BLOB_BYTES = 64 << 20
"""Large enough for full speed, small enough that a retry after a crash finds most of them uploaded."""

BUSY_SECONDS = 2.0
"""How long a save that is not required waits for the previous one: a small state is stored by then."""

FINISH_SECONDS = 10.0
"""How long the end of training waits for pruning."""


@dataclass(frozen=True)
class Restored:
    """The checkpoint that a run resumes from."""

    manifest: Manifest
    small_state: dict[str, Any]
    origin: str
    """Where the state was read, over all ranks: `node-local cache (510.0 MB) and storage (0.1 MB)`."""


@dataclass(frozen=True)
class UploadStatus:
    """A rank's contribution to the votes of a step: the state of its part of the save in flight."""

    is_stored: bool
    """This rank's part is done and only waits for the other ranks."""
    is_fenced: bool
    """A newer attempt has claimed the run."""
    error_changed: bool
    """This rank's error changed since it was last exchanged."""
    is_too_stale: bool
    """On rank 0: the state has been in flight for longer than `spec.checkpoint.uploadTimeout`."""


class CheckpointManager:
    """The checkpoints of one run, as one attempt sees them. All methods are collective unless they say otherwise."""

    def __init__(
        self,
        store: ObjectStore,
        config: TrainerConfig,
        runtime: RuntimeEnv,
        *,
        policy: SavePolicy | None = None,
        report: ProgressReporter | None = None,
        blob_bytes: int = BLOB_BYTES,
        client: UploaderClient | None = None,
        cache: Path | None = None,
    ) -> None:
        """`policy`: when to save, by default from the spec; `cache`: folder of the host that outlives the pod."""
        assert blob_bytes % 4 == 0
        self._config = config
        self._runtime = runtime
        self._report = report or ProgressReporter(None, stage=config.stage, attempt=config.attempt)
        self._policy = policy or SavePolicy.of(config.spec.checkpoint, total_steps=sys.maxsize)
        self._storage = RunStorage.of(
            store,
            config.run_uri,
            attempt=config.attempt,
            generation=config.generation or 0,
            lineage=Lineage.of(config) if config.prepared else None,
            cache=cache,
        )
        setup = Setup(
            storage=config.storage,
            run_uri=config.run_uri,
            attempt=config.attempt,
            generation=config.generation or 0,
            cache=cache,
        )
        self._client: UploaderClient = UploaderProcess(setup) if client is None else client
        self._pruner = CheckpointPruner(self._client, Keep.of(config.spec.checkpoint), runtime)
        self._saver = AsyncSaver(self._client, self._storage, config, runtime, self._pruner, blob_bytes=blob_bytes)
        self._scheduler = CheckpointScheduler(self._policy, self._report)
        self._warned_step = -1
        self._reported_pruner_error = ""
        self.warnings: list[str] = []
        """Warnings for the user, oldest first."""

    # Start and end

    def claim(self) -> None:
        """Claim the run for this attempt. Raises FencedError if another process or a newer attempt has claimed it."""
        warning = rank_zero(partial(self._storage.claims.claim, world_size=self._runtime.world_size), str)
        self._warn([warning] if warning else [])

    def create(self, uri: str, content: bytes) -> bytes:
        """Create an object of the run, unless an attempt has created it, and return its content. Only on rank 0.

        Raises FencedError if a newer attempt has claimed the run.
        """
        return self._storage.create(uri, content)

    def start(self, step: int) -> None:
        """Start the uploader, and the clock of the save interval at this step. Not collective."""
        self._saver.prepare()
        self._scheduler.start(step)

    def finish(self) -> None:
        """After the run has succeeded: finish pruning and remove the node-local cache of the run.

        Waits at most FINISH_SECONDS. Not collective.
        """
        # The last save started the pruning long before the export; no later save will finish it.
        self._pruner.wait(FINISH_SECONDS)
        self._storage.node_cache.remove()

    def close(self) -> None:
        """Terminate the uploader; a save in flight is dropped. Not collective."""
        self._saver.close()

    # Saving

    @property
    def in_flight(self) -> bool:
        """Whether a save is in flight; the same on every rank."""
        return self._saver.in_flight

    @property
    def last(self) -> CommittedCheckpoint | None:
        """The checkpoint that this attempt committed last."""
        return self._saver.last

    def should_save(self, step: int, *, step_seconds: float) -> bool:
        """Whether the policy requires a save after this step. Not collective: only rank 0's answer is used.

        `step_seconds`: recent mean duration of a step.
        """
        is_blocked = self._saver.in_flight or self._pruner.blocks_saves
        is_due = not is_blocked and self._scheduler.is_due(step, step_seconds=step_seconds)
        return is_due or self._policy.saves_at(step)

    def save(self, state: TrainingState, *, step_seconds: float = 0.0, wait: bool = True) -> CommittedCheckpoint | None:
        """Save the state of the training.

        Takes the snapshot and returns; the upload runs in the background. With `wait`, this returns when the checkpoint
        is committed, as the last save of an attempt requires. A save that is neither that nor the best state is
        postponed while the previous one is in flight. Returns the checkpoint if it is committed, else None.

        Raises FencedError if a newer attempt has claimed the run; after any error nothing is committed.
        """
        started = time.monotonic()
        with self._report.phase("save", "saving a checkpoint"):
            if not self._wait_until_idle(is_required=wait or state.best_step == state.step):
                self._scheduler.postpone()
                return None
            self._saver.save(state, spread_seconds=None if wait else self._scheduler.upload_seconds(step_seconds))
        stall_seconds = None if wait else time.monotonic() - started
        self._scheduler.save_started(state.step, started, stall_seconds=stall_seconds)
        self._report_commit()
        return None if self._saver.in_flight else self._saver.last

    def _wait_until_idle(self, *, is_required: bool) -> bool:
        is_idle = self._saver.wait_until_idle(math.inf if is_required else BUSY_SECONDS)
        self._report_commit()
        if not is_idle:
            reason = "is still being stored" if self._saver.in_flight else "is followed by pruning"
            log.info("a save is postponed: the save of step %d %s", self._scheduler.step, reason)
        return is_idle

    def upload_status(self) -> UploadStatus:
        """Process the answers of this rank's uploader. Not collective: `progress` gets what all ranks agreed on."""
        return UploadStatus(
            is_stored=self._saver.poll(),
            is_fenced=self._saver.is_fenced,
            error_changed=self._saver.error_changed,
            is_too_stale=self._runtime.is_main and self._is_too_stale,
        )

    @property
    def _is_too_stale(self) -> bool:
        return self._saver.in_flight and self._scheduler.is_too_stale

    def progress(self, *, all_stored: bool, fenced: bool, error_changed: bool, too_stale: bool) -> None:
        """Advance the save in flight after a step, according to the votes of all ranks on their `upload_status`.

        Raises FencedError on every rank if a newer attempt has claimed the run, and StorageUnreachableError if the
        state could not be stored within `spec.checkpoint.uploadTimeout`.
        """
        saver = self._saver
        if error_changed:
            saver.share_errors()
        self._report_errors()
        if saver.in_flight and (all_stored or fenced):
            saver.advance()
            self._report_commit()
        if too_stale:
            raise self._too_stale_error()

    def record_step(self, seconds: float, *, step_seconds: float) -> None:
        """Measure a step, which took `seconds`, and report whether checkpoints are late. Not collective."""
        self._scheduler.step_done(seconds, is_uploading=self._saver.is_busy)
        is_late = self._scheduler.is_late(step_seconds=step_seconds)
        self._report.update(checkpoint_late=self._why_late() if is_late else "")

    # Reports

    def _report_commit(self) -> None:
        last = self._saver.last
        if not self._saver.in_flight and last is not None:
            if last != self._report.progress.last_checkpoint:
                if self._report.is_main:
                    log.info("checkpoint of step %d committed in %.1f s", last.step, last.save_seconds)
                self._scheduler.committed()
            self._report.update(last_checkpoint=last, flush=True)

    def _report_errors(self) -> None:
        """Warn once per save that is not stored, and once per reason why old checkpoints are not removed."""
        step, pruner_error = self._scheduler.step, self._pruner.error
        if pruner_error and pruner_error != self._reported_pruner_error:
            self._reported_pruner_error = pruner_error
            self._report_warning(f"not all old checkpoints were removed: {pruner_error}")
        if self._saver.in_flight and self._saver.error and self._warned_step != step:
            self._warned_step = step
            self._report_warning(f"the checkpoint of step {step} is not stored yet: {self._saver.error}")

    def _report_warning(self, message: str) -> None:
        log.warning(message)
        self._report.warn(message)

    def _why_late(self) -> str:
        last = self._saver.last
        base = f"all after step {last.step}" if last else "all progress of this attempt"
        return f"a crash would now lose {base}: {self._delay_reason()}"

    def _delay_reason(self) -> str:
        if self._saver.in_flight:
            return self._saver.error or f"the state of step {self._scheduler.step} is still being stored"
        return self._pruner.error or "the next save has not started yet"

    def _too_stale_error(self) -> StorageUnreachableError:
        limit = self._policy.max_stale_seconds
        return StorageUnreachableError(
            f"the state of step {self._scheduler.step} could not be stored within {limit:g} s, the value of "
            f"spec.checkpoint.uploadTimeout: {self._delay_reason()}",
            advice="check the storage, or remove spec.checkpoint.uploadTimeout to continue training in the meantime",
        )

    def _warn(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.warnings:
                self.warnings.append(message)
                log.warning(message)

    # Choosing

    def choose(self, *, exclude: Collection[str] = ()) -> Manifest | None:
        """Return the newest manifest, by attempt, then by step, whose blobs all exist; None if there is none.

        `exclude`: names of manifests that turned out to be unusable. Data blobs are only listed here; `load` verifies
        them.
        """
        manifest, warnings = rank_zero(
            partial(self._storage.catalog.newest_complete, exclude), tuple[Manifest | None, list[str]]
        )
        self._warn(warnings)
        return manifest

    def find(self, step: int) -> Manifest | None:
        """Return the manifest of a step; that of the newest attempt if several saved it; None if there is none."""
        return rank_zero(partial(self._storage.catalog.find, step), Manifest | None)

    # Loading

    def restore(self, engine: Any) -> Restored | None:
        """Load the newest usable checkpoint into the engine; None if there is none.

        Damaged checkpoints are skipped and listed in `warnings`. Call `restore_rng` later for the generators.
        """
        excluded: set[str] = set()
        while (manifest := self.choose(exclude=excluded)) is not None:
            try:
                return self.load(manifest, engine)
            except CorruptCheckpointError as error:
                excluded.add(manifest.name)
                self._storage.blobs.suspect.update(*gather_all(lambda: set(self._storage.blobs.suspect), set[str]))
                self._warn([f"checkpoint {manifest.name} cannot be used: {error}"])
        return None

    def load(self, manifest: Manifest, engine: Any) -> Restored:
        """Load a checkpoint into the engine, with any world size and ZeRO stage.

        No engine is changed until every rank has verified all of its bytes, so a CorruptCheckpointError leaves them
        unchanged. Raises BadConfigError if the checkpoint has different parameters.
        """
        before = self._storage.blobs.read
        state = self._load(manifest, engine, arrays=OPTIMIZER_STATE_ARRAYS)
        origin = sum(gather_all(lambda: self._storage.blobs.read - before, Origin), Origin())
        optimizer_state.set_groups(engine, state.groups)
        optimizer_state.set_counters(engine, state.engine)
        optimizer_state.set_loss_scale(engine, state.loss_scale)
        self._saver.parent_step = manifest.step
        log.info("restored step %d from %s", manifest.step, origin)
        return Restored(manifest, state.small_state, str(origin))

    def load_weights(self, step: int, engine: Any) -> None:
        """Load only the parameters of a step, such as the best one before its export; optimizer and counters are kept.

        Raises CorruptCheckpointError if there is no such checkpoint, or it is damaged.
        """
        manifest = self.find(step)
        if manifest is None:
            raise CorruptCheckpointError(
                f"the checkpoint of the best step, {step}, is missing in {self._config.layout.checkpoints}",
                advice="change spec.runNonce to start a new run",
            )
        self._load(manifest, engine, arrays=1)

    def _load(self, manifest: Manifest, engine: Any, *, arrays: int) -> State:
        """Verify on every rank, then write the first `arrays` arrays and the module's buffers."""
        loader = Loader(self._storage.blobs, manifest)
        slots = optimizer_state.wanted(engine)
        layout = optimizer_state.layout_of(slots)
        host = self._host_buffer(layout.bytes(arrays))

        def stage() -> tuple[State, bytes, tuple[float, ...]]:
            state = loader.state()
            optimizer_state.check_groups(engine, state.groups)
            shapes = optimizer_state.trained_shapes(engine)
            steps = loader.stage(host, layout, shapes, rank=self._runtime.rank, arrays=arrays)
            return state, loader.buffers(state), steps

        state, buffer_bytes, steps = all_ranks(stage)
        optimizer_state.write(engine, slots, host.view(np.float32), steps if arrays == OPTIMIZER_STATE_ARRAYS else None)
        buffers.write(engine.module, state.buffers, buffer_bytes)
        return state

    def _host_buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """Loads reuse the memory of snapshots: touching fresh pages costs more than the copy into them."""
        assert not self._saver.in_flight, "a load would overwrite the snapshot in flight"
        return self._client.snapshot.array(size)

    def restore_rng(self, manifest: Manifest) -> None:
        """Set this rank's random number generators, after the consumed batches of the epoch were skipped.

        With another world size, no saved stream belongs to a rank; the generators are then seeded from seed, step and
        rank.
        """

        def read() -> dict[str, Any] | None:
            if manifest.world_size != self._runtime.world_size:
                return None
            return Loader(self._storage.blobs, manifest).part(self._runtime.rank).rng

        state = all_ranks(read)
        if state is None:
            rng.reseed(seed=self._config.spec.training.seed, step=manifest.step, rank=self._runtime.rank)
        else:
            rng.restore(state)
