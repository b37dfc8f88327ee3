"""The checkpoints of a run for the command line: list, verify, prune, export. Uses neither torch nor an engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from finetune_api.run_layout import RunLayout

from ..errors import CorruptCheckpointError
from ..store import ObjectStore
from .format.layout import blob_sizes
from .format.manifest import Manifest, Part, numbers_of
from .format.orders import Pruned
from .format.retention import GRACE, Keep
from .stored.blobs import Blobs, parallel
from .stored.claims import newest_claim
from .stored.loading import Loader
from .stored.pruning import Pruning
from .stored.run_storage import RunStorage
from .stored.safetensors_export import export_safetensors

__all__ = ["Archive", "Entry", "Keep", "Pruned", "VerificationResult", "Verifier"]


@dataclass(frozen=True)
class Entry:
    """A checkpoint, which may be damaged."""

    name: str
    uri: str
    """Address of the manifest."""
    step: int
    attempt: int
    manifest: Manifest | None
    damage: str = ""
    """Why the manifest cannot be read; empty if it can."""


@dataclass(frozen=True)
class VerificationResult:
    """Result of the verification of a checkpoint."""

    entry: Entry
    blobs: int = 0
    """Number of blobs that it refers to."""
    damages: tuple[str, ...] = ()
    """Problems, each with the address of the missing or damaged object; empty: the checkpoint is complete."""
    is_gone: bool = False
    """Whether it was removed during the verification."""


class Archive:
    """The checkpoints under a run's folder."""

    def __init__(self, store: ObjectStore, run_uri: str) -> None:
        self.run_uri = run_uri.rstrip("/")
        newest = newest_claim(store, RunLayout(self.run_uri).claims)
        # Acts as the newest attempt: a later attempt fences the operations of this object.
        self._storage = RunStorage.of(store, self.run_uri, attempt=newest.attempt, generation=newest.generation)
        self._store = store

    @property
    def is_there(self) -> bool:
        """Whether the run exists."""
        return any(True for _ in self._store.list(self.run_uri + "/"))

    def entries(self) -> list[Entry]:
        """All checkpoints, in the order in which a restore tries them."""
        return [self._entry(name) for name in self._storage.catalog.listing().names]

    def _entry(self, name: str) -> Entry:
        catalog = self._storage.catalog
        step, attempt = numbers_of(name)
        manifest, damage = None, ""
        try:
            manifest = catalog.read(name)
        except CorruptCheckpointError as error:
            damage = str(error)
        return Entry(name, catalog.uri_of(name), step, attempt, manifest, damage)

    def check(self, entries: Sequence[Entry]) -> Iterator[VerificationResult]:
        """Verify every byte of these checkpoints, one after the other; shared blobs are read once."""
        verifier = Verifier(self._storage.blobs)
        for entry in entries:
            if entry.manifest is None:
                yield VerificationResult(entry, damages=(entry.damage,))
                continue
            blobs, damages = verifier.check(entry.manifest)
            is_gone = bool(damages) and entry.name not in self._storage.catalog.listing().names
            yield VerificationResult(entry, blobs, () if is_gone else damages, is_gone)

    def prune(self, keep: Keep, *, is_idle: bool, dry_run: bool = False, quiet: timedelta = GRACE) -> Pruned:
        """Remove checkpoints that are not kept, and their blobs.

        `is_idle`: no attempt is running, so blobs of any age can be removed. Otherwise blobs are removed only if
        nothing of the run was written for `quiet`, and only blobs older than that, so that a save in flight loses
        nothing. `dry_run`: remove nothing. Raises FencedError when a newer attempt starts in the meantime.
        """
        waits = None if is_idle else quiet
        pruning = Pruning(self._storage, keep, grace=waits, quiet=waits, dry_run=dry_run)
        for _ in pruning.steps():
            pass
        return pruning.pruned

    def export(self, entry: Entry, folder: Path) -> list[Path]:
        """Write the parameters as safetensors into `folder`; returns the files, the index last.

        Raises CorruptCheckpointError.
        """
        if entry.manifest is None:
            raise CorruptCheckpointError(entry.damage)
        return export_safetensors(Loader(self._storage.blobs, entry.manifest), folder)


class Verifier:
    """Reads blobs and compares them with their digests. Each is read once, however many checkpoints share it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._sizes: dict[str, int] = {}
        """Sizes of the blobs that were verified."""
        self._damages: dict[str, str] = {}

    def check(self, manifest: Manifest) -> tuple[int, tuple[str, ...]]:
        """Number of blobs that the checkpoint refers to, and their problems. Holds at most four blobs in memory."""
        loader, damages = Loader(self._blobs, manifest), []
        wanted: dict[str, int | None] = {}
        """Digest -> expected size; None: any size."""
        try:
            buffers = loader.state().buffers_blob
            wanted |= {} if buffers is None else {buffers: None}
        except CorruptCheckpointError as error:
            damages.append(str(error))
        for number in range(manifest.world_size):
            try:
                wanted |= self._of_part(manifest, loader.part(number))
            except CorruptCheckpointError as error:
                damages.append(str(error))
        found = parallel(lambda item: self._damage(*item), wanted.items())
        named = len({manifest.state, *(part.digest for part in manifest.parts), *wanted})
        return named, (*damages, *filter(None, found))

    def _of_part(self, manifest: Manifest, part: Part) -> dict[str, int | None]:
        sizes = blob_sizes(part.bytes, manifest.blob_bytes)
        if len(sizes) != len(part.blobs):
            raise CorruptCheckpointError(f"rank {part.rank} has {len(part.blobs)} blobs, expected {len(sizes)}")
        return {part.layout: None, **dict(zip(part.blobs, sizes, strict=True))}

    def _damage(self, digest: str, size: int | None) -> str:
        if digest not in self._sizes and digest not in self._damages:
            try:
                self._sizes[digest] = len(self._blobs.get(digest))
            except CorruptCheckpointError as error:
                self._damages[digest] = str(error)
        if digest in self._damages:
            return self._damages[digest]
        found = self._sizes[digest]
        return "" if size in (None, found) else f"{self._blobs.uri_of(digest)} has {found} bytes, expected {size}"
