"""Checkpoints in a real store without training: the objects that uploaders write, with values that tests can
compute."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from finetune_trainer.checkpoint.format.layout import OPTIMIZER_STATE_ARRAYS, Fragment, Layout
from finetune_trainer.checkpoint.format.manifest import Buffer, Manifest, PartRef, State
from finetune_trainer.checkpoint.format.orders import CommitOrder, PartOrder, StoredPart
from finetune_trainer.checkpoint.stored.loading import Loader
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.checkpoint.upload import uploader
from finetune_trainer.checkpoint.upload.uploader import Pace
from finetune_trainer.store import ObjectStore

FloatArray = npt.NDArray[np.float32]

OLD = datetime.now(UTC) - timedelta(days=300, hours=12, minutes=30)
"""Time of step 0. The age of all checkpoints is displayed as `300 d 12 h`, at any hour."""

SHAPES = {"embedding": (6, 40), "head": (40,), "scale": ()}
"""Name -> shape. The embedding never changes, so all checkpoints share its blobs."""


def value_of(name: str, step: int) -> FloatArray:
    """The complete parameter after a step."""
    base = 1000.0 * list(SHAPES).index(name) + (0 if name == "embedding" else step)
    return (base + np.arange(int(np.prod(SHAPES[name])), dtype=np.float32) / 7).reshape(SHAPES[name])


def layout_of(rank: int, size: int) -> Layout:
    """Every rank has a share of each parameter; a scalar belongs to the last rank."""
    fragments = []
    for name, shape in SHAPES.items():
        total = int(np.prod(shape))
        start, stop = total * rank // size, total * (rank + 1) // size
        if stop > start:
            fragments.append(Fragment(name=name, group=0, start=start, numel=stop - start, shape=shape))
    return Layout(fragments=tuple(fragments))


def arrays_of(layout: Layout, step: int) -> FloatArray:
    parts = [value_of(each.name, step).ravel()[each.start : each.start + each.numel] for each in layout.fragments]
    array = np.concatenate(parts)
    return np.concatenate([array, array * 0.5, array * 0.25])


@dataclass
class StoredRun:
    """Consecutive saves of a run's attempts."""

    store: ObjectStore
    uri: str
    size: int = 2
    blob_bytes: int = 480
    attempt: int = 1
    parent: int | None = None
    manifests: list[Manifest] = field(default_factory=list)

    @property
    def storage(self) -> RunStorage:
        """The storage as the attempt sees it, without any state."""
        return RunStorage.of(self.store, self.uri, attempt=self.attempt)

    def store_parts(self, step: int, *, values: int | None = None) -> list[StoredPart]:
        """Store everything that precedes the manifest; `values`: the step whose parameters are used, if different."""
        return [self._store_part(step, rank, step if values is None else values) for rank in range(self.size)]

    def _store_part(self, step: int, rank: int, values: int) -> StoredPart:
        layout, steps_seen = layout_of(rank, self.size), np.array([step], dtype=np.int64).tobytes()
        arrays = arrays_of(layout, values).tobytes()
        buffer = Buffer(name="steps_seen", dtype="int64", shape=(1,), offset=0, size=8)
        order = PartOrder(
            rank=rank,
            layout=layout,
            steps=tuple(float(step) for _ in layout.fragments),
            rng={"rank": rank, "step": step},
            arrays_bytes=len(arrays),
            buffers_bytes=8 if rank == 0 else 0,
            state=State(engine={}, groups=(), buffers=(buffer,), small_state={"step": step}) if rank == 0 else None,
            blob_bytes=self.blob_bytes,
        )
        return uploader.execute_upload(self.storage, order, memoryview(arrays + steps_seen), Pace())

    def save(self, step: int, *, best: int | None = None, **figures: float) -> Manifest:
        """Store a committed checkpoint; `best` is the best step so far."""
        return self.commit(step, self.store_parts(step), best=best, **figures)

    def commit(self, step: int, parts: list[StoredPart], *, best: int | None = None, **figures: float) -> Manifest:
        """Write the manifest of a save whose parts are stored."""
        manifest = Manifest(
            step=step,
            attempt=self.attempt,
            run=1,
            time=(OLD + timedelta(seconds=step)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            world_size=self.size,
            zero_stage=2,
            blob_bytes=self.blob_bytes,
            parts=tuple(PartRef(rank=rank, digest=part.digest) for rank, part in enumerate(parts)),
            state=parts[0].state,
            parent_step=self.parent,
            bytes=sum(part.bytes for part in parts),
            is_best=best == step,
            best_step=best,
            metrics=figures,
        )
        uploader.commit(self.storage, CommitOrder(manifest=manifest))
        self.parent = step
        self.manifests.append(manifest)
        return manifest

    def claim(self, attempt: int) -> None:
        """Make the following saves belong to this attempt."""
        self.attempt = attempt
        self.storage.claims.claim(world_size=self.size)

    # State of the storage

    def names(self) -> list[str]:
        """Names of the manifests, in the order in which a restore tries them."""
        return list(self.storage.catalog.listing().names)

    def blobs(self) -> set[str]:
        """Digests of all blobs."""
        return set(self.storage.blobs.sizes())

    def blobs_of(self, *manifests: Manifest) -> set[str]:
        """Digests of all blobs that these checkpoints refer to."""
        named: set[str] = set()
        for manifest in manifests:
            loader = Loader(self.storage.blobs, manifest)
            buffers = loader.state().buffers_blob
            assert buffers is not None
            named |= {manifest.state, buffers, *(part.digest for part in manifest.parts)}
            for rank in range(manifest.world_size):
                part = loader.part(rank)
                named |= {part.layout, *part.blobs}
        return named

    def blob_uri(self, digest: str) -> str:
        """Address of a blob."""
        return f"{self.uri}/checkpoints/blobs/{digest}"

    def restorable(self) -> Iterator[str]:
        """Names of the checkpoints whose bytes are complete and correct."""
        for name in self.names():
            manifest = self.storage.catalog.read(name)
            loader = Loader(self.storage.blobs, manifest)
            loader.check_complete()
            state = loader.state()
            assert loader.buffers(state) == np.array([manifest.step], dtype=np.int64).tobytes()
            wanted = layout_of(0, 1)
            buffer = np.empty(wanted.bytes(), dtype=np.uint8)
            loader.stage(buffer, wanted, dict(SHAPES), rank=99, arrays=OPTIMIZER_STATE_ARRAYS)
            assert np.array_equal(buffer.view(np.float32), arrays_of(wanted, manifest.step))
            yield name
