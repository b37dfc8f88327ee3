"""AsyncSaver: takes a snapshot at a step (staging), uploads it while the training continues, and commits it.

One save is in flight at a time. All ranks advance it together, so all of them know its state:

    start    every rank copies its state into shared memory and sends its uploader an order to store it
    advance  the parts of all ranks are stored: rank 0 collects their digests and sends the order to write the manifest
    advance  the manifest is written: the checkpoint is committed, nothing is in flight, and old ones are pruned

Between these, `poll` reports on each rank whether its part is stored; the training loop adds this to the votes that the
ranks exchange at every step anyway.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from finetune_api.clock import rfc3339, utc_now
from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig

from ..collectives import all_ranks, gather_all, rank_zero
from ..errors import StorageUnreachableError, TrainerError
from ..failures import Failure
from ..runtime import RuntimeEnv
from .engine import buffers, optimizer_state, rng
from .engine.pinning import PinnedMemory
from .format.compatibility import Lineage
from .format.manifest import Manifest, PartRef, State
from .format.orders import CommitOrder, PartOrder, StoredPart
from .pruner import CheckpointPruner
from .stored.run_storage import RunStorage
from .upload.client import UploaderClient

log = logging.getLogger(__name__)

STORAGE_ERROR_SECONDS = 90.0
"""How long a required save waits for unresponsive storage. It exceeds the timeout of one or two requests that storage
accepts but does not answer, during which uploaders report nothing. A server that had just been started delayed
its first writer by 19 s."""
_POLL_SECONDS = 0.2

UPLOAD_BYTES_PER_SECOND = 50e6
"""Minimum upload rate of a rank. Measured with a prototype on two processors: at this rate steps take 4.5 % longer, at
full speed 18 to 44 %. A lower rate would only keep a checkpoint in flight longer."""


@dataclass(frozen=True)
class TrainingState:
    """The state that a save stores: that of a training run after an optimizer step."""

    step: int
    engine: Any
    """DeepSpeed engine."""
    small_state: dict[str, Any]
    """State of the training loop as JSON values, the same on every rank; rank 0's is stored."""
    data_position: int | None = None
    """Global batches of training data consumed so far; None: one per step."""
    best_step: int | None = None
    """Step of the best state so far, if early stopping is used."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the validation split after this step; empty if it was not evaluated."""


@dataclass
class _PendingSave:
    """A save in flight, as one rank sees it."""

    state: TrainingState
    snapshot_seconds: float
    manifest: Manifest | None = None
    """The manifest that is being written; None: parts are being stored."""
    stored: StoredPart | None = None
    busy_seconds: float = 0.0
    is_done: bool = False
    """Whether this rank's current order is done."""
    error: TrainerError | None = None
    error_since: float = math.inf
    fenced: Failure | None = None


class AsyncSaver:
    """Executes the saves of one attempt. Collective, except for `prepare`, `poll` and the properties."""

    def __init__(
        self,
        client: UploaderClient,
        storage: RunStorage,
        config: TrainerConfig,
        runtime: RuntimeEnv,
        pruner: CheckpointPruner,
        *,
        blob_bytes: int,
    ) -> None:
        self._client, self._storage, self._config, self._runtime = client, storage, config, runtime
        self._pruner = pruner
        self._blob_bytes = blob_bytes
        self._pinned = PinnedMemory()
        self._pending: _PendingSave | None = None
        self._is_save_waiting = False
        """Whether the next save is waiting for the one in flight."""
        self._errors: list[str] = []
        """Errors of all uploaders, by rank, as last exchanged; empty: no errors."""
        self.parent_step: int | None = None
        """Step of the checkpoint that the training continues from: the last one committed or restored."""
        self.last: CommittedCheckpoint | None = None
        """The last committed checkpoint."""

    @property
    def in_flight(self) -> bool:
        """Whether a save is in flight; the same on every rank. Pruning does not count."""
        return self._pending is not None

    @property
    def is_busy(self) -> bool:
        """Whether this rank's uploader was uploading or pruning at its last answer."""
        return self.in_flight or self._pruner.is_busy

    def close(self) -> None:
        """Terminate the uploader; a save in flight is dropped. Not collective."""
        self._pinned.release()
        self._client.close()

    def prepare(self) -> None:
        """Start the uploader before the first save: its imports take a second or more."""
        self._client.prepare()

    # Staging

    def save(self, state: TrainingState, *, spread_seconds: float | None = None) -> None:
        """Save the state, after waiting for a save in flight. The last saved step is not saved again.

        With `spread_seconds` the upload runs in the background within about that time, and this returns immediately.
        Without it, this returns when the checkpoint is committed. Raises FencedError if a newer attempt has claimed the
        run; after this or any other error nothing is committed.
        """
        if self._newest_step != state.step:
            self.wait_until_idle()
            self.start(state, spread_seconds=spread_seconds or 0.0)
        if spread_seconds is None or not self.in_flight:
            self.wait()

    @property
    def _newest_step(self) -> int | None:
        if self._pending is not None:
            return self._pending.state.step
        return None if self.last is None else self.last.step

    def start(self, state: TrainingState, *, spread_seconds: float) -> None:
        """Take the snapshot and return immediately. `wait_until_idle` must be called first."""
        assert self._pending is None, "one save at a time"
        assert not self._pruner.is_open, "a removal could delete blobs that this save finds in storage"
        started = time.monotonic()
        order = all_ranks(partial(self._snapshot, state.engine, state.small_state, spread_seconds))
        self._client.send(order)
        self._pending = _PendingSave(state, snapshot_seconds=time.monotonic() - started)

    def _snapshot(self, engine: Any, small_state: dict[str, Any], spread_seconds: float) -> PartOrder:
        slots = optimizer_state.owned(engine, rank=self._runtime.rank, world_size=self._runtime.world_size)
        layout = optimizer_state.layout_of(slots)
        state, content = self._state(engine, small_state) if self._runtime.is_main else (None, b"")
        size = layout.bytes()
        memory = self._client.snapshot.array(size + len(content))
        self._pinned.hold(memory)
        steps = optimizer_state.read(engine, slots, memory[:size].view(np.float32))
        memory[size:] = np.frombuffer(content, dtype=np.uint8)
        return PartOrder(
            rank=self._runtime.rank,
            layout=layout,
            steps=steps,
            rng=rng.capture(),
            arrays_bytes=size,
            buffers_bytes=len(content),
            state=state,
            blob_bytes=self._blob_bytes,
            suspect=tuple(self._storage.blobs.suspect),
            spread_seconds=min(spread_seconds, size / UPLOAD_BYTES_PER_SECOND),
        )

    @staticmethod
    def _state(engine: Any, small_state: dict[str, Any]) -> tuple[State, bytes]:
        entries, content = buffers.read(engine.module)
        state = State(
            engine=optimizer_state.counters(engine),
            loss_scale=optimizer_state.loss_scale(engine),
            groups=optimizer_state.groups(engine),
            buffers=entries,
            small_state=small_state,
        )
        return state, content

    # State of the upload on this rank

    def poll(self, timeout: float = 0.0) -> bool:
        """Process answers of this rank's uploader, waiting at most `timeout` seconds.

        Returns whether this rank's part of the save is done, so that it only waits for the other ranks.
        """
        pending = self._pending
        if pending is None:
            self._pruner.poll(timeout)
            return False
        deadline = time.monotonic() + timeout
        while not (pending.is_done or pending.fenced):
            answer = self._client.receive(max(0.0, deadline - time.monotonic()))
            if answer is None:
                return False
            pending.busy_seconds += answer.busy_seconds
            if answer.done:
                pending.is_done, pending.error, pending.error_since = True, None, math.inf
                pending.stored = answer.part or pending.stored
            elif answer.is_final:
                pending.fenced = answer.failure
            elif answer.failure is not None:
                pending.error = answer.failure.error()
                pending.error_since = min(pending.error_since, time.monotonic())
        return pending.is_done

    @property
    def is_fenced(self) -> bool:
        """Whether this rank's uploader has found that a newer attempt has claimed the run."""
        return self._pending is not None and self._pending.fenced is not None

    @property
    def _own_error(self) -> str:
        return "" if self._pending is None or self._pending.error is None else str(self._pending.error)

    @property
    def error(self) -> str:
        """Why an upload makes no progress: this rank's error, else that of the lowest rank with one; empty: no
        error."""
        others = (f"rank {rank}: {error}" for rank, error in enumerate(self._errors) if error)
        return self._own_error or next(others, "")

    @property
    def error_changed(self) -> bool:
        """Whether this rank's error differs from the one that was last exchanged."""
        known = self._errors[self._runtime.rank] if self._errors else ""
        return self._own_error != known

    def share_errors(self) -> None:
        """Exchange the errors of all uploaders. Collective."""
        self._errors = gather_all(lambda: self._own_error, str)

    # Commit

    def advance(self) -> None:
        """Advance the save once all ranks are done or one is fenced. Raises FencedError on every rank."""
        pending = self._pending
        assert pending is not None
        stored = gather_all(partial(self._take_stored, pending), tuple[StoredPart, float])
        if pending.manifest is not None:
            self._on_committed(pending, max(busy for _, busy in stored))
            return
        pending.manifest = self._manifest(pending, [part for part, _ in stored])
        # The other ranks have no further order; the save is committed when rank 0's uploader is done.
        pending.is_done = not self._runtime.is_main
        if self._runtime.is_main:
            self._client.send(
                CommitOrder(manifest=pending.manifest, has_conditions=self._storage.claims.has_conditions)
            )

    def _take_stored(self, pending: _PendingSave) -> tuple[StoredPart, float]:
        if pending.fenced is not None:
            raise pending.fenced.error()
        assert pending.stored is not None
        return pending.stored, pending.busy_seconds

    def _manifest(self, pending: _PendingSave, parts: list[StoredPart]) -> Manifest:
        state, lineage = pending.state, Lineage.of(self._config)
        return Manifest(
            step=state.step,
            attempt=self._config.attempt,
            run=self._config.run,
            data_position=state.step if state.data_position is None else state.data_position,
            time=rank_zero(lambda: rfc3339(utc_now(), "seconds"), str),
            world_size=self._runtime.world_size,
            zero_stage=state.engine.zero_optimization_stage(),
            blob_bytes=self._blob_bytes,
            parts=tuple(PartRef(rank=rank, digest=part.digest) for rank, part in enumerate(parts)),
            state=parts[0].state,
            parent_step=self.parent_step,
            job=lineage.job,
            dataset_digest=lineage.dataset_digest,
            model_digest=lineage.model_digest,
            bytes=sum(part.bytes for part in parts),
            is_best=state.best_step == state.step,
            best_step=state.best_step,
            metrics=state.metrics,
        )

    def _on_committed(self, pending: _PendingSave, busy_seconds: float) -> None:
        assert pending.manifest is not None
        step = pending.state.step
        self._pending, self.parent_step, self._errors = None, step, []
        assert pending.stored is not None
        self._storage.blobs.suspect.intersection_update(pending.stored.suspect)
        self.last = CommittedCheckpoint(
            step=step,
            uri=self._storage.catalog.uri_of(pending.manifest.name),
            time=pending.manifest.time,
            save_seconds=round(pending.snapshot_seconds + busy_seconds, 3),
        )
        self._pruner.start(is_save_waiting=self._is_save_waiting)

    # Waiting

    def wait(self, timeout: float = math.inf) -> bool:
        """Wait at most `timeout` seconds until no save is in flight; return whether none is. Pruning continues.

        Raises FencedError, and without a timeout, the storage error that has lasted for STORAGE_ERROR_SECONDS.
        """
        deadline = time.monotonic() + timeout
        while self._pending is not None:
            self._client.expedite()
            ready = gather_all(partial(self._wait_for_part, self._pending, deadline), bool)
            if not all(ready):
                self._client.restore_priority()
                return False
            self.advance()
        return True

    def wait_until_idle(self, timeout: float = math.inf) -> bool:
        """Wait at most `timeout` seconds until a save can start; return whether it can. Raises like `wait`.

        Pruning is stopped for it after the current request, unless pruning blocks saves.
        """
        deadline = time.monotonic() + timeout
        self._is_save_waiting = True
        try:
            return self.wait(timeout) and self._pruner.stop(deadline - time.monotonic())
        finally:
            self._is_save_waiting = False

    def _wait_for_part(self, pending: _PendingSave, deadline: float) -> bool:
        while not self.poll(_POLL_SECONDS):
            if pending.fenced is not None:
                raise pending.fenced.error()
            time_left = deadline - time.monotonic()
            if time_left <= 0:
                return False
            if math.isinf(deadline) and pending.error is not None:
                self._raise_if_lasting(pending.error, since=pending.error_since)
        return True

    @staticmethod
    def _raise_if_lasting(error: TrainerError, *, since: float) -> None:
        """Raise the error at once if a retry cannot help, else after STORAGE_ERROR_SECONDS."""
        is_transient = type(error) in (StorageUnreachableError, TrainerError)
        if not is_transient or time.monotonic() - since > STORAGE_ERROR_SECONDS:
            raise error
