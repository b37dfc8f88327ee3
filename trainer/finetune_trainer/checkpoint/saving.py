"""Saving while the training goes on: a snapshot at a step, and what becomes of it, step by step.

One save is in flight at a time. All ranks know how far it is, because they move it on together:

    begin    every rank copies its state into shared memory and orders its uploader to store it
    advance  all parts are stored: rank 0 learns their digests, and orders the manifest
    advance  the manifest is written: the checkpoint exists, nothing is in flight, and old ones begin to be removed

Between these, `is_ready` says on each rank whether it waits for the others only; a training adds that to what its ranks
exchange anyway at every step.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig

from ..errors import StorageUnreachableError, TrainerError
from ..runtime import RuntimeEnv
from .engine import buffers, fragments, rng
from .engine.collective import all_ranks, gather_all, rank_zero
from .engine.pinning import PinnedMemory
from .format.clock import now
from .format.failures import Failure
from .format.fitness import Lineage
from .format.manifest import Manifest, PartRef, State
from .format.orders import CommitOrder, PartOrder, StoredPart
from .format.retention import Keep
from .housekeeping import Housekeeping
from .stored.places import RunStorage
from .training_state import TrainingState
from .upload.client import UploaderClient

log = logging.getLogger(__name__)

TROUBLE_SECONDS = 90.0
"""How long somebody who needs the save waits for storage that does not answer. More than a request or two may take that
storage accepts and says nothing to: nobody hears of them meanwhile, and a server that has just been started was seen to
keep its first writer waiting for 19 s."""
_PEEK_SECONDS = 0.2

UNFELT_BYTES_PER_SECOND = 50e6
"""Of a rank's upload. Measured with a prototype on two processors: at this rate steps take 4.5 % longer, without one 18
to 44 %. To go slower still would only leave a checkpoint longer in flight."""


@dataclass
class _Flight:
    """A save in flight, as one rank sees it."""

    state: TrainingState
    snapshot_seconds: float
    manifest: Manifest | None = None
    """Ordered; None: parts are being stored."""
    stored: StoredPart | None = None
    busy_seconds: float = 0.0
    is_done: bool = False
    """This rank's order of now is carried out."""
    trouble: TrainerError | None = None
    trouble_since: float = math.inf
    refusal: Failure | None = None


class Saver:
    """Saves of one attempt. Collective, all but `prepare`, `hurry`, and what is asked of this rank alone."""

    def __init__(
        self,
        client: UploaderClient,
        storage: RunStorage,
        config: TrainerConfig,
        runtime: RuntimeEnv,
        *,
        blob_bytes: int,
    ) -> None:
        self._client, self._storage, self._config, self._runtime = client, storage, config, runtime
        self._blob_bytes = blob_bytes
        self._pinned = PinnedMemory()
        self._flight: _Flight | None = None
        self._makes_room = False
        """The next save waits for the one in flight."""
        self._troubles: list[str] = []
        """Of all ranks, by rank, as they were last exchanged; empty: none is known of."""
        self.housekeeping = Housekeeping(client, Keep.of(config.spec.checkpoint), runtime)
        self.parent_step: int | None = None
        """Step of the checkpoint that the training goes on from: the last one committed or restored."""
        self.last: CommittedCheckpoint | None = None
        """The last one committed."""

    @property
    def in_flight(self) -> bool:
        """A save is; the same on every rank. Old checkpoints that are being removed do not count."""
        return self._flight is not None

    @property
    def is_working(self) -> bool:
        """This rank's uploader stores or removes something, or did when it was last heard of."""
        return self.in_flight or self.housekeeping.is_working

    @property
    def newest_step(self) -> int | None:
        """Of the save in flight, else of the last one committed."""
        if self._flight is not None:
            return self._flight.state.step
        return None if self.last is None else self.last.step

    def close(self) -> None:
        """End the uploader, and what is in flight with it. Not collective."""
        self._pinned.release()
        self._client.close()

    def prepare(self) -> None:
        """Saves will come. The uploader's imports take a second or more, by which the first of them would be later."""
        self._client.prepare()

    def begin(self, state: TrainingState, *, spread_seconds: float) -> None:
        """Take the snapshot, and return as soon as it is taken. `make_room` comes before it."""
        assert self._flight is None, "one save at a time"
        assert not self.housekeeping.is_open, "what this save finds in storage must not be removed"
        started = time.monotonic()
        order = all_ranks(partial(self._snapshot, state.engine, state.small_state, spread_seconds))
        self._client.send(order)
        self._flight = _Flight(state, snapshot_seconds=time.monotonic() - started)

    def _snapshot(self, engine: Any, small_state: dict[str, Any], spread_seconds: float) -> PartOrder:
        slots = fragments.owned(engine, rank=self._runtime.rank, world_size=self._runtime.world_size)
        layout = fragments.layout_of(slots)
        state, content = self._state(engine, small_state) if self._runtime.is_main else (None, b"")
        size = layout.bytes()
        memory = self._client.snapshot.array(size + len(content))
        self._pinned.hold(memory)
        steps = fragments.read(engine, slots, memory[:size].view(np.float32))
        memory[size:] = np.frombuffer(content, dtype=np.uint8)
        return PartOrder(
            rank=self._runtime.rank,
            layout=layout,
            steps=steps,
            rng=rng.capture(),
            planes_bytes=size,
            buffers_bytes=len(content),
            state=state,
            blob_bytes=self._blob_bytes,
            suspect=tuple(self._storage.blobs.suspect),
            spread_seconds=min(spread_seconds, size / UNFELT_BYTES_PER_SECOND),
        )

    @staticmethod
    def _state(engine: Any, small_state: dict[str, Any]) -> tuple[State, bytes]:
        entries, content = buffers.read(engine.module)
        state = State(
            engine=fragments.counters(engine),
            loss_scale=fragments.loss_scale(engine),
            groups=fragments.groups(engine),
            buffers=entries,
            small_state=small_state,
        )
        return state, content

    # How far it is, on this rank

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether this rank's part of a save waits for the others only.

        Looks for news of its uploader, `timeout` seconds at most.
        """
        flight = self._flight
        if flight is None:
            self.housekeeping.hear(timeout)
            return False
        deadline = time.monotonic() + timeout
        while not (flight.is_done or flight.refusal):
            answer = self._client.receive(max(0.0, deadline - time.monotonic()))
            if answer is None:
                return False
            flight.busy_seconds += answer.busy_seconds
            if answer.done:
                flight.is_done, flight.trouble, flight.trouble_since = True, None, math.inf
                flight.stored = answer.part or flight.stored
            elif answer.is_final:
                flight.refusal = answer.failure
            elif answer.failure is not None:
                flight.trouble = answer.failure.error()
                flight.trouble_since = min(flight.trouble_since, time.monotonic())
        return flight.is_done

    @property
    def is_refused(self) -> bool:
        """Storage has told this rank's uploader that the attempt must not write any more."""
        return self._flight is not None and self._flight.refusal is not None

    @property
    def _own_trouble(self) -> str:
        return "" if self._flight is None or self._flight.trouble is None else str(self._flight.trouble)

    @property
    def trouble(self) -> str:
        """Why an uploader gets no further: this rank's, else the first of which this rank knows; empty while all do."""
        others = (f"rank {rank}: {trouble}" for rank, trouble in enumerate(self._troubles) if trouble)
        return self._own_trouble or next(others, "")

    @property
    def has_news(self) -> bool:
        """Whether the other ranks know another trouble of this rank's uploader than it has."""
        known = self._troubles[self._runtime.rank] if self._troubles else ""
        return self._own_trouble != known

    def share_trouble(self) -> None:
        """A rank has news. Collective."""
        self._troubles = gather_all(lambda: self._own_trouble, str)

    # Moving it on, together

    def advance(self) -> None:
        """All ranks are ready, or one is refused: the next part of the flight. Raises FencedError on every rank."""
        flight = self._flight
        assert flight is not None
        stored = gather_all(partial(self._take_stored, flight), tuple[StoredPart, float])
        if flight.manifest is not None:
            self._land(flight, max(busy for _, busy in stored))
            return
        flight.manifest = self._manifest(flight, [part for part, _ in stored])
        # The other ranks have no further order; they are ready when rank 0's is.
        flight.is_done = not self._runtime.is_main
        if self._runtime.is_main:
            self._client.send(CommitOrder(manifest=flight.manifest, has_conditions=self._storage.claims.has_conditions))

    def _take_stored(self, flight: _Flight) -> tuple[StoredPart, float]:
        if flight.refusal is not None:
            raise flight.refusal.error()
        assert flight.stored is not None
        return flight.stored, flight.busy_seconds

    def _manifest(self, flight: _Flight, parts: list[StoredPart]) -> Manifest:
        state, lineage = flight.state, Lineage.of(self._config)
        return Manifest(
            step=state.step,
            attempt=self._config.attempt,
            run=self._config.run,
            time=rank_zero(now, str),
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

    def _land(self, flight: _Flight, busy_seconds: float) -> None:
        assert flight.manifest is not None
        step = flight.state.step
        self._flight, self.parent_step, self._troubles = None, step, []
        assert flight.stored is not None
        self._storage.blobs.suspect.intersection_update(flight.stored.suspect)
        self.last = CommittedCheckpoint(
            step=step,
            uri=self._storage.catalogue.uri_of(flight.manifest.name),
            time=flight.manifest.time,
            save_seconds=round(flight.snapshot_seconds + busy_seconds, 3),
        )
        self.housekeeping.begin(is_awaited=self._makes_room)

    # Waiting for it

    def hurry(self) -> None:
        """Somebody waits."""
        self._client.expedite()

    def settle(self, patience: float = math.inf) -> bool:
        """Wait until no save is in flight any more, or for `patience` seconds; whether none is.

        A removal of old checkpoints goes on. Raises FencedError, and with endless patience what keeps storage from
        answering, once it has done so for long.
        """
        deadline = time.monotonic() + patience
        while self._flight is not None:
            self.hurry()
            flight = self._flight
            ready = gather_all(partial(self._wait_until_ready, flight, deadline), bool)
            if not all(ready):
                self._client.restore_priority()
                return False
            self.advance()
        return True

    def make_room(self, patience: float = math.inf) -> bool:
        """Wait until a save may begin, or for `patience` seconds; whether it may. Raises like `settle`.

        A removal of old checkpoints is broken off for it, unless it `insists`: one request is waited for.
        """
        deadline = time.monotonic() + patience
        self._makes_room = True
        try:
            return self.settle(patience) and self.housekeeping.end(deadline - time.monotonic())
        finally:
            self._makes_room = False

    def _wait_until_ready(self, flight: _Flight, deadline: float) -> bool:
        while not self.is_ready(_PEEK_SECONDS):
            if flight.refusal is not None:
                raise flight.refusal.error()
            time_left = deadline - time.monotonic()
            if time_left <= 0:
                return False
            if math.isinf(deadline) and flight.trouble is not None:
                self._give_up(flight, flight.trouble)
        return True

    @staticmethod
    def _give_up(flight: _Flight, trouble: TrainerError) -> None:
        is_passing = type(trouble) in (StorageUnreachableError, TrainerError)
        if not is_passing or time.monotonic() - flight.trouble_since > TROUBLE_SECONDS:
            raise trouble
