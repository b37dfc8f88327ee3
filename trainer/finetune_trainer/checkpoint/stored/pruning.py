"""The removal of checkpoints that are not kept, in storage: manifests first, then the blobs that none names any more.

It may be broken off between any two requests: a checkpoint without its manifest is none, and blobs that are left over
are found again by the next round.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from ...errors import CorruptCheckpointError
from ..format.manifest import Manifest
from ..format.orders import Pruned
from ..format.retention import GRACE, Keep, StoredBlob, kept, unneeded
from .places import RunStorage

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work with pauses, and its result."""

BATCH = 200
"""Objects that one request removes. A rank that stops a removal waits for one request."""


class Pruning:
    """One round. A rehearsal removes nothing, but tells what would be.

    `quiet` is for whoever does not know whether the run saves meanwhile: blobs go only while nothing of the run has
    been written for so long. A save in flight may need any blob that it finds in storage, however old, and no manifest
    names it yet; but it also writes, so it shows.
    """

    def __init__(
        self,
        storage: RunStorage,
        keep: Keep,
        *,
        grace: timedelta | None = GRACE,
        batch: int = BATCH,
        rehearsal: bool = False,
        quiet: timedelta | None = None,
    ) -> None:
        self._storage, self._keep, self._grace, self._batch = storage, keep, grace, batch
        self._quiet = quiet
        self._is_rehearsal = rehearsal
        self._is_finished = False
        self._blocked_by = ""
        """Why blobs stay; empty if they do not."""
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
        """Do it, pausing before every request, or few of them. Raises FencedError once a newer attempt has the run.

        The next round finishes what one that was not run to its end has left.
        """
        yield from self._round()
        self._is_finished = True

    def _round(self) -> Iterator[None]:
        catalogue = self._storage.catalogue
        yield
        listing = catalogue.listing()
        manifests = yield from self._manifests(listing.names)
        if listing.strangers:
            self._blocked_by = f"{catalogue.uri_of(listing.strangers[0]).removesuffix('.json')} is no manifest"
        stays = kept(manifests, self._keep)
        names = [manifest.name for manifest in reversed(manifests) if manifest not in stays]
        yield from self._in_batches(names, catalogue.remove, self._names.extend)
        if self._blocked_by or self._may_be_saving():
            return
        named = yield from self._named(stays)
        if named is None:
            return
        blobs = yield from self._listed()
        newest = max([listing.newest, *(blob.modified for blob in blobs)])
        goes = unneeded(blobs, named, newest=newest, grace=self._grace)
        yield from self._in_batches(goes, self._remove_blobs, self._blobs.extend, stops=self._may_be_saving)
        self._storage.references.forget_all_but(named)

    def _manifests(self, names: Sequence[str]) -> Steps[list[Manifest]]:
        """Those that can be read, in the order of `names`. The others stay: who knows what they are."""
        found = []
        for name in names:
            yield
            try:
                found.append(self._storage.catalogue.read(name))
            except CorruptCheckpointError as error:
                self._blocked_by = str(error)
        return found

    def _named(self, manifests: Sequence[Manifest]) -> Steps[set[str] | None]:
        """Every digest that is still needed; None if that cannot be known."""
        references, named = self._storage.references, set[str]()
        for manifest in manifests:
            try:
                yield from references.learn(manifest)
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
        """Whether the run may have a save in flight, as far as `quiet` asks; then blobs stay."""
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
            # What this deletes was not needed when it was listed. Who could need it since: this attempt's own saves,
            # but none is under way while it prunes, see `housekeeping`; and a newer attempt, whose claim comes before
            # its first look at the checkpoints. It finds old blobs there and does not upload them again. A claim that
            # comes between this check and the request, within one batch, can cost it a checkpoint that it has just
            # saved, if that needs a blob which nobody has needed for the grace period: it is noticed as incomplete
            # when it is read, and the one before it is gone on from. Nothing wrong is ever gone on from. The same holds
            # for a request that was given up here, and that storage carries out later all the same.
            self._storage.claims.check()
            if not self._is_rehearsal:
                remove(batch)
            note(batch)
