"""The manifests of a run: which checkpoints exist, and which of them are usable."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ...errors import BadConfigError, CorruptCheckpointError, NewerCheckpointError, ObjectMissingError
from ...store import ObjectStore, join
from ..format.compatibility import IncompatibleCheckpointError, Lineage, NewerFormatError, check_lineage, read_manifest
from ..format.manifest import Manifest, newest_first, numbers_of, serialize
from .blobs import Blobs
from .loading import Loader


@dataclass(frozen=True)
class Listing:
    """Contents of the folder `manifests`."""

    names: tuple[str, ...]
    """Names of the manifests, in the order in which a restore tries them."""
    others: tuple[str, ...]
    """Names of all other objects."""
    newest: datetime
    """Latest modification time, from the clock of storage."""


class Catalog:
    """The manifests under `runs/<run>/checkpoints/manifests`. Used on rank 0 only."""

    def __init__(self, store: ObjectStore, blobs: Blobs, uri: str, *, lineage: Lineage | None) -> None:
        self._store = store
        self._blobs = blobs
        self._uri = uri
        self._lineage = lineage

    def uri_of(self, name: str) -> str:
        """Address of a manifest."""
        return join(self._uri, f"{name}.json")

    def add(self, manifest: Manifest, *, has_conditions: bool = True) -> bool:
        """Commit a checkpoint; False if a different one of that name exists.

        Without conditional writes, this first checks whether the name exists. The name contains the attempt, which only
        one process has claimed, so no other process writes it; see docs/decisions/0006.
        """
        uri, content = self.uri_of(manifest.name), serialize(manifest)
        if has_conditions:
            is_new = self._store.put_if_absent(uri, content)
        elif is_new := not self._store.exists(uri):
            self._store.put(uri, content)
        # Equal content was written by an uploader that died before it could report it.
        return is_new or self._store.get(uri) == content

    def newest_complete(self, exclude: Collection[str]) -> tuple[Manifest | None, list[str]]:
        """The first usable manifest, and warnings about the unusable ones before it.

        Raises BadConfigError if one of those has a newer format: starting from an older checkpoint would repeat
        its work.
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
                    advice="use an image of that version (spec.workers.image), or remove it to resume from an older "
                    "one",
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
        """List the folder."""
        prefix = self._uri + "/"
        found = {info.uri.removeprefix(prefix): info.modified for info in self._store.list(prefix)}
        names = newest_first(list(found))
        return Listing(
            names=tuple(names),
            others=tuple(key for key in found if key.removesuffix(".json") not in names),
            newest=max(found.values(), default=datetime.min.replace(tzinfo=UTC)),
        )

    def remove(self, names: Sequence[str]) -> None:
        """Delete manifests, and with them the checkpoints; missing ones are ignored."""
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
            raise CorruptCheckpointError(f"{uri} is missing") from error
        except NewerFormatError as error:
            raise NewerCheckpointError(f"{uri} {error}") from error
        except IncompatibleCheckpointError as error:
            raise CorruptCheckpointError(f"{uri} {error}") from error
        if manifest.name != name:
            raise CorruptCheckpointError(f"{uri} contains the manifest of {manifest.name}")
        return manifest

    def _read(self, uri: str) -> Manifest:
        """Read twice before reporting an error, because bytes may also be damaged in transit."""
        try:
            return read_manifest(self._store.get(uri))
        except IncompatibleCheckpointError:
            return read_manifest(self._store.get(uri))
