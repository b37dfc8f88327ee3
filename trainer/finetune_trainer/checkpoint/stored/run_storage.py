"""The folders of a run's checkpoints in storage."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from finetune_api.run_layout import RunLayout

from ...store import ObjectStore
from ..format.compatibility import Lineage
from .blobs import Blobs
from .catalog import Catalog
from .claims import Claims
from .loading import References
from .node_local_cache import NodeLocalCache


@dataclass(frozen=True)
class RunStorage:
    """Claims, blobs and manifests of a run, as one attempt sees them, and the node-local cache."""

    store: ObjectStore
    uri: str
    """Folder of the run."""

    claims: Claims
    blobs: Blobs
    catalog: Catalog
    node_cache: NodeLocalCache
    references: References

    def create(self, uri: str, content: bytes) -> bytes:
        """Create an object of the run, unless an attempt has created it, and return its content.

        Without conditional writes, this first checks whether it exists; see docs/decisions/0006.

        Raises FencedError if a newer attempt has claimed the run.
        """
        self.claims.check()
        if self.claims.has_conditions:
            is_new = self.store.put_if_absent(uri, content)
        elif is_new := not self.store.exists(uri):
            self.store.put(uri, content)
        return content if is_new else self.store.get(uri)

    def quiet_for(self) -> timedelta:
        """Time since anything of the run was last written, from the clock of storage."""
        written = max((info.modified for info in self.store.list(self.uri.rstrip("/") + "/")), default=None)
        return timedelta.max if written is None else self.store.now(self.uri) - written

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        run_uri: str,
        *,
        attempt: int,
        generation: int = 0,
        lineage: Lineage | None = None,
        cache: Path | None = None,
    ) -> "RunStorage":
        """`lineage`: identifies compatible checkpoints; `cache`: folder of the node-local cache."""
        layout, node_cache = RunLayout(run_uri.rstrip("/")), NodeLocalCache.of(cache, run_uri)
        blobs = Blobs(store, layout.blobs, node_cache)
        return cls(
            store=store,
            uri=run_uri,
            claims=Claims(store, layout.claims, attempt=attempt, generation=generation),
            blobs=blobs,
            catalog=Catalog(store, blobs, layout.manifests, lineage=lineage),
            node_cache=node_cache,
            references=References(blobs),
        )
