"""CheckpointPlane: claim the run, save, choose, load. Every public method is collective: all ranks call it together."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig

from ..errors import CorruptCheckpointError
from ..runtime import RuntimeEnv
from ..store import ObjectStore
from .engine import buffers, fragments, rng
from .engine.collective import all_ranks, gather_all, rank_zero
from .format.fitness import Lineage
from .format.layout import PLANES
from .format.manifest import Manifest, State
from .format.orders import Setup
from .saving import Saver
from .stored.blobs import Origin
from .stored.loading import Loader
from .stored.places import RunStorage
from .training_state import TrainingState
from .upload.client import UploaderClient, UploaderProcess

log = logging.getLogger(__name__)

BLOB_BYTES = 64 << 20
"""Large enough for full speed, small enough that a retry after a crash finds most of them uploaded already."""


@dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    manifest: Manifest
    small_state: dict[str, Any]
    origin: str
    """Where the state was read, of all ranks: `own host (510.0 MB) and storage (0.1 MB)`."""


class CheckpointPlane:
    """The checkpoints of one run, as one attempt sees them."""

    def __init__(
        self,
        store: ObjectStore,
        config: TrainerConfig,
        runtime: RuntimeEnv,
        *,
        blob_bytes: int = BLOB_BYTES,
        client: UploaderClient | None = None,
        cache: Path | None = None,
    ) -> None:
        """`cache`: folder of the host that outlives this process, where copies of the newest checkpoints are kept."""
        assert blob_bytes % 4 == 0
        self._config = config
        self._runtime = runtime
        self._storage = RunStorage.of(
            store,
            config.run_uri,
            attempt=config.attempt,
            lineage=Lineage.of(config) if config.prepared else None,
            cache=cache,
        )
        setup = Setup(storage=config.storage, run_uri=config.run_uri, attempt=config.attempt, cache=cache)
        self._client: UploaderClient = UploaderProcess(setup) if client is None else client
        self.saver = Saver(self._client, self._storage, config, runtime, blob_bytes=blob_bytes)
        self.warnings: list[str] = []
        """What a user should see, oldest first."""

    def close(self) -> None:
        """End the uploader, and what is in flight with it."""
        self.saver.close()

    def remove_copies(self) -> None:
        """What the own host keeps of the run's checkpoints: the run has ended well. Not collective."""
        self._storage.copies.remove()

    # The claim

    def claim(self) -> None:
        """Become the run's attempt. Raises FencedError if this or a newer attempt is claimed by somebody else."""
        warning = rank_zero(partial(self._storage.claims.claim, world_size=self._runtime.world_size), str)
        self._warn([warning] if warning else [])

    # Saving

    def save(self, state: TrainingState, *, spread_seconds: float | None = None) -> CommittedCheckpoint | None:
        """Save the whole state of the training.

        With `spread_seconds` it is stored in the background within about that time, and this returns None at once; see
        `saver` for what becomes of it. Without, this returns when the manifest is in storage. Raises FencedError if a
        newer attempt has claimed the run; then, and after any other error, nothing is committed. What is still in
        flight is waited for first. A step that was saved last is not saved again.
        """
        saver = self.saver
        if saver.newest_step != state.step:
            saver.make_room()
            saver.begin(state, spread_seconds=spread_seconds or 0.0)
        if spread_seconds is not None and saver.in_flight:
            return None
        saver.settle()
        return saver.last

    # Choosing

    def choose(self, *, exclude: Collection[str] = ()) -> Manifest | None:
        """The newest manifest whose blobs are all there, by attempt, then by step; None if there is none.

        `exclude` names manifests that proved unusable. Data blobs are only counted here; `load` verifies them.
        """
        manifest, warnings = rank_zero(
            partial(self._storage.catalogue.newest_complete, exclude), tuple[Manifest | None, list[str]]
        )
        self._warn(warnings)
        return manifest

    def find(self, step: int) -> Manifest | None:
        """The manifest of one step, that of the newest attempt if several saved it; None if there is none."""
        return rank_zero(partial(self._storage.catalogue.find, step), Manifest | None)

    # Loading

    def restore(self, engine: Any) -> Restored | None:
        """Load the newest checkpoint that proves whole, going back one for each that does not; None if there is none.

        What was passed over is in `warnings`. The generators are set later, by `restore_rng`.
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
        """Bring the engine to the checkpoint's state.

        Any world size and ZeRO stage. No engine is touched before every rank has verified all of its bytes, so a
        CorruptCheckpointError leaves them as they were. BadConfigError: the checkpoint is of other parameters.
        """
        before = self._storage.blobs.read
        state = self._load(manifest, engine, planes=PLANES)
        origin = sum(gather_all(lambda: self._storage.blobs.read - before, Origin), Origin())
        fragments.set_groups(engine, state.groups)
        fragments.set_counters(engine, state.engine)
        fragments.set_loss_scale(engine, state.loss_scale)
        self.saver.parent_step = manifest.step
        log.info("restored step %d from %s", manifest.step, origin)
        return Restored(manifest, state.small_state, str(origin))

    def weights_only(self, manifest: Manifest, engine: Any) -> None:
        """Load the parameters' values alone: the best state, before it is exported. Optimizer and counters stay."""
        self._load(manifest, engine, planes=1)

    def _load(self, manifest: Manifest, engine: Any, *, planes: int) -> State:
        """Verify on every rank, then write the first `planes` planes and the module's buffers."""
        loader = Loader(self._storage.blobs, manifest)
        slots = fragments.wanted(engine)
        layout = fragments.layout_of(slots)
        host = self._host_buffer(layout.bytes(planes))

        def stage() -> tuple[State, bytes, tuple[float, ...]]:
            state = loader.state()
            fragments.check_groups(engine, state.groups)
            shapes = fragments.trained_shapes(engine)
            steps = loader.stage(host, layout, shapes, rank=self._runtime.rank, planes=planes)
            return state, loader.buffers(state), steps

        state, buffer_bytes, steps = all_ranks(stage)
        fragments.write(engine, slots, host.view(np.float32), steps if planes == PLANES else None)
        buffers.write(engine.module, state.buffers, buffer_bytes)
        return state

    def _host_buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """The snapshots' memory serves for loads too: fresh pages cost more than the copy into them."""
        assert not self.saver.in_flight, "what is in flight would be overwritten"
        return self._client.snapshot.array(size)

    def restore_rng(self, manifest: Manifest) -> None:
        """Set this rank's random number generators; to be called after the batches of the epoch so far were skipped.

        In a world of another size no saved stream belongs to a rank: then they start anew from seed, step and rank.
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

    def _warn(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.warnings:
                self.warnings.append(message)
                log.warning(message)
