"""Where a run's checkpoints lie in storage."""

from dataclasses import dataclass
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

    claims: Claims
    blobs: Blobs
    catalogue: Catalogue
    copies: HostCopies
    references: References

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
            claims=Claims(store, join(run_uri, "attempts"), attempt=attempt),
            blobs=blobs,
            catalogue=Catalogue(store, blobs, manifests, lineage=lineage),
            copies=copies,
            references=References(blobs),
        )
