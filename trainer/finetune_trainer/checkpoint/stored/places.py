"""Where a run's checkpoints lie in storage."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ...store import ObjectStore, join
from ..format.fitness import Lineage
from .blobs import Blobs
from .catalogue import Catalogue
from .claims import Claims
from .host import HostCopies
from .references import References


@dataclass(frozen=True)
class RunStorage:
    """The three rooms of a run, as one attempt sees them, what it has learnt of them, and what the own host has."""

    store: ObjectStore
    uri: str
    """Folder of the run."""

    claims: Claims
    blobs: Blobs
    catalogue: Catalogue
    copies: HostCopies
    references: References

    def quiet_for(self) -> timedelta:
        """How long ago storage last wrote anything of the run, by its own clock."""
        written = max((info.modified for info in self.store.list(self.uri.rstrip("/") + "/")), default=None)
        return timedelta.max if written is None else self.store.now(self.uri) - written

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        run_uri: str,
        *,
        attempt: int,
        lineage: Lineage | None = None,
        cache: Path | None = None,
    ) -> "RunStorage":
        """`lineage` says which checkpoints are of something else, `cache` where the own host keeps copies."""
        copies = HostCopies.of(cache, run_uri)
        blobs = Blobs(store, join(run_uri, "checkpoints", "blobs"), copies)
        manifests = join(run_uri, "checkpoints", "manifests")
        return cls(
            store=store,
            uri=run_uri,
            claims=Claims(store, join(run_uri, "attempts"), attempt=attempt),
            blobs=blobs,
            catalogue=Catalogue(store, blobs, manifests, lineage=lineage),
            copies=copies,
            references=References(blobs),
        )
