"""Which checkpoints a run has, and which of them can be used."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.trainer_config import Prepared

from ..errors import CorruptCheckpointError, ObjectMissingError
from ..store import ObjectStore, join
from .blobs import Blobs
from .failures import first_fault
from .loading import Loader
from .manifest import VERSION, Manifest, newest_first


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

    def __init__(self, store: ObjectStore, blobs: Blobs, uri: str, *, prepared: Prepared | None) -> None:
        self._store = store
        self._blobs = blobs
        self._uri = uri
        self._prepared = prepared

    def uri_of(self, name: str) -> str:
        """Address of a manifest."""
        return join(self._uri, f"{name}.json")

    def add(self, manifest: Manifest) -> bool:
        """Commit a checkpoint; False if there is another one of that name already."""
        uri, content = self.uri_of(manifest.name), manifest.model_dump_json(indent=1).encode()
        # The same one: written by an uploader that has died before it could tell.
        return self._store.put_if_absent(uri, content) or self._store.get(uri) == content

    def newest_complete(self, exclude: Collection[str]) -> tuple[Manifest | None, list[str]]:
        """The first usable manifest, and why those before it are not."""
        warnings: list[str] = []
        for name in self._names():
            if name in exclude:
                continue
            try:
                manifest = self.read(name)
                Loader(self._blobs, manifest).check_complete()
            except CorruptCheckpointError as error:
                warnings.append(f"checkpoint {name} cannot be used: {error}")
            else:
                return manifest, warnings
        return None, warnings

    def find(self, step: int) -> Manifest | None:
        """The newest attempt's manifest of `step`. Raises CorruptCheckpointError if it cannot be read."""
        found = [name for name in self._names() if int(name.partition("-")[0]) == step]
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
        """The manifest. Raises CorruptCheckpointError."""
        uri = self.uri_of(name)
        try:
            manifest = Manifest.model_validate_json(self._store.get(uri))
        except ObjectMissingError as error:
            raise CorruptCheckpointError(f"{uri} is gone") from error
        except ValidationError as error:
            raise CorruptCheckpointError(
                f"{uri} is not a manifest of version {VERSION}: {first_fault(error)}"
            ) from error
        if manifest.version != VERSION:
            raise CorruptCheckpointError(f"{uri} has version {manifest.version}, known is {VERSION}")
        if manifest.name != name:
            raise CorruptCheckpointError(f"{uri} holds the manifest of {manifest.name}")
        if self._is_foreign(manifest):
            raise CorruptCheckpointError(f"{uri} was trained from another base model or data set")
        return manifest

    def _is_foreign(self, manifest: Manifest) -> bool:
        origin = self._prepared
        if origin is None:
            return False
        return (manifest.dataset_digest, manifest.model_digest) != (origin.dataset_digest, origin.model_digest)
