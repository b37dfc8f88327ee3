"""CheckpointPlane: claim the run, save, choose, load. Every public method is collective: all ranks call it together.

Order of a save: data blobs, layouts, parts (all content-addressed, harmless without a manifest), then the check that no
newer attempt has claimed the run, then the manifest in one conditional put. Whatever dies on the way leaves the
checkpoint before as the newest.
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig

from ..errors import CorruptCheckpointError, FencedError
from ..runtime import RuntimeEnv
from ..store import ObjectStore, join
from . import buffers, fragments, rng
from .blobs import Blobs, parallel
from .catalogue import Catalogue
from .claims import Claims
from .clock import now
from .collective import everywhere, on_main, together
from .layout import PLANES
from .loading import Loader
from .manifest import Manifest, Part, PartRef, State

log = logging.getLogger(__name__)

BLOB_BYTES = 64 << 20
"""Large enough for full speed, small enough that a retry after a crash finds most of them uploaded already."""


@dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    manifest: Manifest
    small_state: dict[str, Any]


class CheckpointPlane:
    """The checkpoints of one run, as one attempt sees them."""

    def __init__(
        self, store: ObjectStore, config: TrainerConfig, runtime: RuntimeEnv, *, blob_bytes: int = BLOB_BYTES
    ) -> None:
        assert blob_bytes % 4 == 0
        self._config = config
        self._runtime = runtime
        self._blob_bytes = blob_bytes
        self._claims = Claims(store, join(config.run_uri, "attempts"), attempt=config.attempt)
        self._blobs = Blobs(store, join(config.run_uri, "checkpoints", "blobs"))
        self._catalogue = Catalogue(
            store, self._blobs, join(config.run_uri, "checkpoints", "manifests"), prepared=config.prepared
        )
        self._host = np.empty(0, dtype=np.uint8)
        self._parent_step: int | None = None
        self._last: CommittedCheckpoint | None = None
        self.warnings: list[str] = []
        """What a user should see, oldest first."""

    # The claim

    def claim(self) -> None:
        """Become the run's attempt. Raises FencedError if this or a newer attempt is claimed by somebody else."""
        on_main(partial(self._claims.claim, world_size=self._runtime.world_size))

    # Saving

    def save(
        self,
        *,
        step: int,
        engine: Any,
        small_state: dict[str, Any],
        is_best: bool = False,
        metrics: dict[str, float] | None = None,
    ) -> CommittedCheckpoint:
        """Commit the whole training state after optimizer step `step`; returns when the manifest is in storage.

        `small_state` is the Trainer's own, JSON values, the same on every rank (rank 0's is stored). Raises FencedError
        if a newer attempt has claimed the run; then, and after any other error, nothing is committed. A step that this
        plane has just saved is not saved again.
        """
        if self._last is not None and self._last.step == step:
            return self._last
        started = time.monotonic()
        parts = everywhere(partial(self._save_part, engine))
        manifest = on_main(partial(self._commit, step, engine, small_state, parts, is_best, metrics or {}))
        self._parent_step = step
        self._last = CommittedCheckpoint(
            step=step,
            uri=self._catalogue.uri_of(manifest.name),
            time=manifest.time,
            save_seconds=round(time.monotonic() - started, 3),
        )
        return self._last

    def _save_part(self, engine: Any) -> tuple[str, int]:
        """Upload what this rank holds; returns its part's digest and the bytes of its data."""
        rank = self._runtime.rank
        slots = fragments.owned(engine, rank=rank, world_size=self._runtime.world_size)
        layout = fragments.layout_of(slots)
        host = self._host_buffer(layout.bytes())
        steps = fragments.read(engine, slots, host.view(np.float32))
        view = host.data
        cuts = range(0, len(view), self._blob_bytes)
        blobs = parallel(lambda at: self._blobs.put(view[at : at + self._blob_bytes]), cuts)
        part = Part(
            rank=rank,
            layout=self._blobs.put_json(layout.model_dump()),
            blobs=tuple(blobs),
            bytes=len(view),
            steps=steps,
            rng=rng.capture(),
        )
        return self._blobs.put_json(part.model_dump()), part.bytes

    def _commit(
        self,
        step: int,
        engine: Any,
        small_state: dict[str, Any],
        parts: list[tuple[str, int]],
        is_best: bool,
        metrics: dict[str, float],
    ) -> Manifest:
        prepared = self._config.prepared
        manifest = Manifest(
            step=step,
            attempt=self._config.attempt,
            run=self._config.run,
            time=now(),
            world_size=self._runtime.world_size,
            zero_stage=engine.zero_optimization_stage(),
            blob_bytes=self._blob_bytes,
            parts=tuple(PartRef(rank=rank, digest=digest) for rank, (digest, _) in enumerate(parts)),
            state=self._put_state(engine, small_state),
            parent_step=self._parent_step,
            dataset_digest=prepared.dataset_digest if prepared else "",
            model_digest=prepared.model_digest if prepared else "",
            bytes=sum(size for _, size in parts),
            is_best=is_best,
            metrics=metrics,
        )
        self._claims.check()
        if not self._catalogue.add(manifest):
            raise FencedError(
                f"{self._catalogue.uri_of(manifest.name)} exists already: another process writes as attempt "
                f"{manifest.attempt}"
            )
        return manifest

    def _put_state(self, engine: Any, small_state: dict[str, Any]) -> str:
        entries, content = buffers.read(engine.module)
        state = State(
            engine=fragments.counters(engine),
            groups=fragments.groups(engine),
            buffers=entries,
            buffers_blob=self._blobs.put(content) if entries else None,
            small_state=small_state,
        )
        return self._blobs.put_json(state.model_dump())

    # Choosing

    def choose(self, *, exclude: Collection[str] = ()) -> Manifest | None:
        """The newest manifest whose blobs are all there, by attempt, then by step; None if there is none.

        `exclude` names manifests that proved unusable. Data blobs are only counted here; `load` verifies them.
        """
        manifest, warnings = on_main(partial(self._catalogue.newest_complete, exclude))
        self._warn(warnings)
        return manifest

    def find(self, step: int) -> Manifest | None:
        """The manifest of one step, that of the newest attempt if several saved it; None if there is none."""
        return on_main(partial(self._catalogue.find, step))

    # Loading

    def restore(self, engine: Any) -> Restored | None:
        """Load the newest checkpoint that proves whole, going back one for each that does not; None if there is none.

        What was passed over is in `warnings`. The generators are set later, by `restore_rng`.
        """
        excluded: set[str] = set()
        while (manifest := self.choose(exclude=excluded)) is not None:
            try:
                return Restored(manifest, self.load(manifest, engine))
            except CorruptCheckpointError as error:
                excluded.add(manifest.name)
                self._blobs.suspect.update(*everywhere(lambda: set(self._blobs.suspect)))
                self._warn([f"checkpoint {manifest.name} cannot be used: {error}"])
        return None

    def load(self, manifest: Manifest, engine: Any) -> dict[str, Any]:
        """Bring the engine to the checkpoint's state; returns `small_state`.

        Any world size and ZeRO stage. No engine is touched before every rank has verified all of its bytes, so a
        CorruptCheckpointError leaves them as they were. BadConfigError: the checkpoint is of other parameters.
        """
        state = self._load(manifest, engine, planes=PLANES)
        fragments.set_groups(engine, state.groups)
        fragments.set_counters(engine, state.engine)
        self._parent_step = manifest.step
        log.info("restored step %d from %s", manifest.step, self._catalogue.uri_of(manifest.name))
        small_state: dict[str, Any] = state.small_state
        return small_state

    def weights_only(self, manifest: Manifest, engine: Any) -> None:
        """Load the parameters' values alone: the best state, before it is exported. Optimizer and counters stay."""
        self._load(manifest, engine, planes=1)

    def _load(self, manifest: Manifest, engine: Any, *, planes: int) -> State:
        """Verify on every rank, then write the first `planes` planes and the module's buffers."""
        loader = Loader(self._blobs, manifest)
        slots = fragments.wanted(engine)
        layout = fragments.layout_of(slots)
        host = self._host_buffer(layout.bytes(planes))

        def stage() -> tuple[State, bytes, tuple[float, ...]]:
            state = loader.state()
            fragments.check_groups(engine, state.groups)
            shapes = fragments.trained_shapes(engine)
            steps = loader.stage(host, layout, shapes, rank=self._runtime.rank, planes=planes)
            return state, loader.buffers(state), steps

        state, buffer_bytes, steps = together(stage)
        fragments.write(engine, slots, host.view(np.float32), steps if planes == PLANES else None)
        buffers.write(engine.module, state.buffers, buffer_bytes)
        return state

    def _host_buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """One buffer for saves and loads: fresh pages cost more than the copy into them."""
        if self._host.nbytes < size:
            self._host = np.empty(size, dtype=np.uint8)
        return self._host[:size]

    def restore_rng(self, manifest: Manifest) -> None:
        """Set this rank's random number generators; to be called after the batches of the epoch so far were skipped.

        In a world of another size no saved stream belongs to a rank: then they start anew from seed, step and rank.
        """

        def read() -> dict[str, Any] | None:
            if manifest.world_size != self._runtime.world_size:
                return None
            return Loader(self._blobs, manifest).part(self._runtime.rank).rng

        state = together(read)
        if state is None:
            rng.reseed(seed=self._config.spec.training.seed, step=manifest.step, rank=self._runtime.rank)
        else:
            rng.restore(state)

    def _warn(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.warnings:
                self.warnings.append(message)
                log.warning(message)
