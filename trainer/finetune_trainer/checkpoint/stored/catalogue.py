"""Which checkpoints a run has, and which of them can be used."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ...errors import BadConfigError, CorruptCheckpointError, NewerCheckpointError, ObjectMissingError
from ...store import ObjectStore, join
from ..format.fitness import Lineage, NewerFormatError, UnfitError, check_lineage, read_manifest
from ..format.manifest import Manifest, newest_first, numbers_of, sealed
from .blobs import Blobs
from .loading import Loader


@dataclass(frozen=True)
class Listing:
    """What lies under `manifests`."""

    names: tuple[str, ...]
    """Of the manifests, the one to restore first in front."""
    strangers: tuple[str, ...]
    """Names of everything else."""
    newest: datetime
    """When storage last wrote any of it, by its own clock."""


class Catalogue:
    """The manifests under `runs/<run>/checkpoints/manifests`. To be used on rank 0 alone."""

    def __init__(self, store: ObjectStore, blobs: Blobs, uri: str, *, lineage: Lineage | None) -> None:
        self._store = store
        self._blobs = blobs
        self._uri = uri
        self._lineage = lineage

    def uri_of(self, name: str) -> str:
        """Address of a manifest."""
        return join(self._uri, f"{name}.json")

    def add(self, manifest: Manifest, *, has_conditions: bool = True) -> bool:
        """Commit a checkpoint; False if there is another one of that name already.

        Without conditional writes that is looked up first. Its name carries the attempt, which one process has claimed,
        so nobody else wants it; see docs/decisions/0006.
        """
        uri, content = self.uri_of(manifest.name), sealed(manifest)
        if has_conditions:
            is_new = self._store.put_if_absent(uri, content)
        elif is_new := not self._store.exists(uri):
            self._store.put(uri, content)
        # The same one: written by an uploader that has died before it could tell.
        return is_new or self._store.get(uri) == content

    def newest_complete(self, exclude: Collection[str]) -> tuple[Manifest | None, list[str]]:
        """The first usable manifest, and why those before it are not.

        Raises BadConfigError where one before it is of a newer version: it has what a start from the one after it, or
        from the base model, would compute again.
        """
        warnings: list[str] = []
        for name in self._names():
            if name in exclude:
                continue
            try:
                manifest = self.read(name)
                Loader(self._blobs, manifest).check_complete()
            except NewerCheckpointError as error:
                raise BadConfigError(
                    f"checkpoint {name}: {error}",
                    advice="use an image of that version (spec.workers.image), or remove it to start from before it",
                ) from error
            except CorruptCheckpointError as error:
                warnings.append(f"checkpoint {name} cannot be used: {error}")
            else:
                return manifest, warnings
        return None, warnings

    def find(self, step: int) -> Manifest | None:
        """The newest attempt's manifest of `step`. Raises CorruptCheckpointError if it cannot be read."""
        found = [name for name in self._names() if numbers_of(name)[0] == step]
        return self.read(found[0]) if found else None

    def listing(self) -> Listing:
        """What there is, by one look."""
        prefix = self._uri + "/"
        found = {info.uri.removeprefix(prefix): info.modified for info in self._store.list(prefix)}
        names = newest_first(list(found))
        return Listing(
            names=tuple(names),
            strangers=tuple(key for key in found if key.removesuffix(".json") not in names),
            newest=max(found.values(), default=datetime.min.replace(tzinfo=UTC)),
        )

    def remove(self, names: Sequence[str]) -> None:
        """Delete manifests, and the checkpoints with them; those that are not there are no error."""
        self._store.delete_many([self.uri_of(name) for name in names])

    def _names(self) -> tuple[str, ...]:
        return self.listing().names

    def read(self, name: str) -> Manifest:
        """The manifest. Raises CorruptCheckpointError, NewerCheckpointError."""
        uri = self.uri_of(name)
        try:
            manifest = self._read(uri)
            if self._lineage is not None:
                check_lineage(manifest, self._lineage)
        except ObjectMissingError as error:
            raise CorruptCheckpointError(f"{uri} is gone") from error
        except NewerFormatError as error:
            raise NewerCheckpointError(f"{uri} {error}") from error
        except UnfitError as error:
            raise CorruptCheckpointError(f"{uri} {error}") from error
        if manifest.name != name:
            raise CorruptCheckpointError(f"{uri} holds the manifest of {manifest.name}")
        return manifest

    def _read(self, uri: str) -> Manifest:
        """Bytes may also break on their way, so what is wrong is read a second time before it is called so."""
        try:
            return read_manifest(self._store.get(uri))
        except UnfitError:
            return read_manifest(self._store.get(uri))
