"""Removes checkpoints that are not kept from storage: first manifests, then the blobs that no manifest refers to.

Pruning can be interrupted between any two requests: without its manifest a checkpoint does not exist, and the next
round finds the remaining blobs.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from ...errors import CorruptCheckpointError
from ..format.manifest import Manifest
from ..format.orders import Pruned
from ..format.retention import GRACE, Keep, StoredBlob, kept, unneeded
from .run_storage import RunStorage

T = TypeVar("T")
Steps = Generator[None, None, T]
"""An iterator that pauses between requests, and returns a result."""

BATCH = 200
"""Number of objects that one request removes. A rank that stops the pruning waits for one request."""


class Pruning:
    """One round. `dry_run`: report what would be removed, and remove nothing.

    `quiet` is for callers that do not know whether the run is saving: blobs are removed only if nothing of the run was
    written for this long. A save in flight may need any blob that it finds in storage, however old, although no
    manifest refers to it yet; but it also writes, which the listing shows.
    """

    def __init__(
        self,
        storage: RunStorage,
        keep: Keep,
        *,
        grace: timedelta | None = GRACE,
        batch: int = BATCH,
        dry_run: bool = False,
        quiet: timedelta | None = None,
    ) -> None:
        self._storage, self._keep, self._grace, self._batch = storage, keep, grace, batch
        self._quiet = quiet
        self._is_dry_run = dry_run
        self._is_finished = False
        self._blocked_by = ""
        """Why blobs are not removed; empty if they are."""
        self._names: list[str] = []
        self._blobs: list[StoredBlob] = []

    @property
    def pruned(self) -> Pruned:
        """What was removed so far."""
        return Pruned(
            checkpoints=tuple(self._names),
            blobs=len(self._blobs),
            bytes=sum(blob.size for blob in self._blobs),
            is_finished=self._is_finished,
            blocked_by=self._blocked_by,
        )

    def steps(self) -> Iterator[None]:
        """Remove, pausing before every request or every few requests.

        Raises FencedError if a newer attempt has claimed the run. The next round finishes an interrupted one.
        """
        yield from self._round()
        self._is_finished = True

    def _round(self) -> Iterator[None]:
        catalog = self._storage.catalog
        yield
        listing = catalog.listing()
        manifests = yield from self._manifests(listing.names)
        if listing.others:
            self._blocked_by = f"{catalog.uri_of(listing.others[0]).removesuffix('.json')} is not a manifest"
        stays = kept(manifests, self._keep)
        names = [manifest.name for manifest in reversed(manifests) if manifest not in stays]
        yield from self._in_batches(names, catalog.remove, self._names.extend)
        if self._blocked_by or self._may_be_saving():
            return
        named = yield from self._named(stays)
        if named is None:
            return
        blobs = yield from self._listed()
        newest = max([listing.newest, *(blob.modified for blob in blobs)])
        goes = unneeded(blobs, named, newest=newest, grace=self._grace)
        yield from self._in_batches(goes, self._remove_blobs, self._blobs.extend, stops=self._may_be_saving)
        self._storage.references.retain(named)

    def _manifests(self, names: Sequence[str]) -> Steps[list[Manifest]]:
        """The readable manifests, in the order of `names`. The others are kept, because their contents are unknown."""
        found = []
        for name in names:
            yield
            try:
                found.append(self._storage.catalog.read(name))
            except CorruptCheckpointError as error:
                self._blocked_by = str(error)
        return found

    def _named(self, manifests: Sequence[Manifest]) -> Steps[set[str] | None]:
        """Every digest that is still needed; None if a part cannot be read."""
        references, named = self._storage.references, set[str]()
        for manifest in manifests:
            try:
                yield from references.read(manifest)
            except CorruptCheckpointError as error:
                self._blocked_by = f"checkpoint {manifest.name}: {error}"
                return None
            named |= references.of(manifest)
        return named

    def _listed(self) -> Steps[list[StoredBlob]]:
        yield
        blobs = []
        for number, blob in enumerate(self._storage.blobs.listed(), start=1):
            blobs.append(blob)
            if number % 1000 == 0:  # a page of the listing
                yield
        return blobs

    def _may_be_saving(self) -> bool:
        """Whether the run may have a save in flight, according to `quiet`; then no blobs are removed."""
        if self._quiet is not None and (quiet_for := self._storage.quiet_for()) < self._quiet:
            self._blocked_by = (
                f"something of the run was written {max(0, quiet_for.total_seconds()) / 60:.0f} minutes ago, so a save "
                f"may be in flight; blobs are removed after {self._quiet.total_seconds() / 60:.0f} minutes without a "
                "write"
            )
        return bool(self._blocked_by)

    def _remove_blobs(self, blobs: Sequence[StoredBlob]) -> None:
        self._storage.blobs.remove([blob.digest for blob in blobs])

    def _in_batches(
        self,
        items: Sequence[T],
        remove: Callable[[Sequence[T]], None],
        note: Callable[[Sequence[T]], None],
        *,
        stops: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        for start in range(0, len(items), self._batch):
            yield
            if stops():
                return
            batch = items[start : start + self._batch]
            # These objects were not needed when they were listed, but two writers may need them since. Saves of this
            # attempt: none is in flight while it prunes, see `CheckpointPruner`. A newer attempt: it claims the run
            # before it lists checkpoints, finds old blobs in storage and does not upload them again. A claim between
            # this check and the request, within one batch, can cost the newer attempt a checkpoint that it has just
            # saved, if that needs a blob that was unreferenced for the grace period. The checkpoint is detected as
            # incomplete when it is read, and the run resumes from the previous one, never from a wrong state. The same
            # applies to a request that timed out here but that storage still executes later.
            self._storage.claims.check()
            if not self._is_dry_run:
                remove(batch)
            note(batch)
