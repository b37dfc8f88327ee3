"""Where a run's checkpoints lie in storage."""

from dataclasses import dataclass

from finetune_api.trainer_config import Prepared

from ..store import ObjectStore, join
from .blobs import Blobs
from .catalogue import Catalogue
from .claims import Claims
from .references import References


@dataclass(frozen=True)
class RunStorage:
    """The three rooms of a run, as one attempt sees them, and what it has learnt of them."""

    claims: Claims
    blobs: Blobs
    catalogue: Catalogue
    references: References

    @classmethod
    def of(cls, store: ObjectStore, run_uri: str, *, attempt: int, prepared: Prepared | None = None) -> "RunStorage":
        """`prepared` says which checkpoints are of another model or data set."""
        blobs = Blobs(store, join(run_uri, "checkpoints", "blobs"))
        manifests = join(run_uri, "checkpoints", "manifests")
        return cls(
            claims=Claims(store, join(run_uri, "attempts"), attempt=attempt),
            blobs=blobs,
            catalogue=Catalogue(store, blobs, manifests, prepared=prepared),
            references=References(blobs),
        )
