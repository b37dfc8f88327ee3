"""The checkpoints of a run, for people: what there is, whether it is whole, what may go. No torch, no engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ..errors import CorruptCheckpointError
from ..store import ObjectStore, join
from .format.manifest import Manifest, numbers_of
from .format.orders import Pruned
from .format.retention import GRACE, Keep
from .stored.claims import newest_claim
from .stored.loading import Loader
from .stored.places import RunStorage
from .stored.pruning import Pruning
from .stored.values import write_values
from .stored.verifying import Verifier

__all__ = ["Archive", "Checked", "Entry", "Keep", "Pruned"]


@dataclass(frozen=True)
class Entry:
    """A checkpoint, or what is left of it."""

    name: str
    uri: str
    """Of the manifest."""
    step: int
    attempt: int
    manifest: Manifest | None
    damage: str = ""
    """Why the manifest cannot be read; empty if it can."""


@dataclass(frozen=True)
class Checked:
    """What the bytes of a checkpoint are like."""

    entry: Entry
    blobs: int = 0
    """That it names."""
    damages: tuple[str, ...] = ()
    """Each with the address of what is missing or wrong; empty: all of it is whole."""
    is_gone: bool = False
    """It was removed meanwhile."""


class Archive:
    """The checkpoints under a run's folder."""

    def __init__(self, store: ObjectStore, run_uri: str) -> None:
        self.run_uri = run_uri.rstrip("/")
        newest = newest_claim(store, join(self.run_uri, "attempts"))
        # In the name of the newest attempt: one that begins later stops what goes on here.
        self._storage = RunStorage.of(store, self.run_uri, attempt=newest)
        self._store = store

    @property
    def is_there(self) -> bool:
        """Whether there is such a run at all."""
        return any(True for _ in self._store.list(self.run_uri + "/"))

    def entries(self) -> list[Entry]:
        """All checkpoints, the one to restore first in front."""
        return [self._entry(name) for name in self._storage.catalogue.listing().names]

    def _entry(self, name: str) -> Entry:
        catalogue = self._storage.catalogue
        step, attempt = numbers_of(name)
        manifest, damage = None, ""
        try:
            manifest = catalogue.read(name)
        except CorruptCheckpointError as error:
            damage = str(error)
        return Entry(name, catalogue.uri_of(name), step, attempt, manifest, damage)

    def check(self, entries: Sequence[Entry]) -> Iterator[Checked]:
        """Read every byte of these checkpoints, one after the other; what several share is read once."""
        verifier = Verifier(self._storage.blobs)
        for entry in entries:
            if entry.manifest is None:
                yield Checked(entry, damages=(entry.damage,))
                continue
            blobs, damages = verifier.check(entry.manifest)
            is_gone = bool(damages) and entry.name not in self._storage.catalogue.listing().names
            yield Checked(entry, blobs, () if is_gone else damages, is_gone)

    def prune(self, keep: Keep, *, is_at_rest: bool, rehearsal: bool = False, quiet: timedelta = GRACE) -> Pruned:
        """Remove what is not kept. `is_at_rest`: nobody saves meanwhile, so that blobs need not be old to go.

        Otherwise blobs go only once nothing of the run has been written for `quiet`, and only those that are older: a
        save in flight keeps all it needs. A rehearsal removes nothing. Raises FencedError when a newer attempt begins
        meanwhile.
        """
        waits = None if is_at_rest else quiet
        pruning = Pruning(self._storage, keep, grace=waits, quiet=waits, rehearsal=rehearsal)
        for _ in pruning.steps():
            pass
        return pruning.pruned

    def export(self, entry: Entry, folder: Path) -> list[Path]:
        """Write the parameters' values into `folder`; the files, the index last. Raises CorruptCheckpointError."""
        if entry.manifest is None:
            raise CorruptCheckpointError(entry.damage)
        return write_values(Loader(self._storage.blobs, entry.manifest), folder)
