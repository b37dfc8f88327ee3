"""Whether a checkpoint is whole, byte by byte."""

from ...errors import CorruptCheckpointError
from ..format.layout import blob_sizes
from ..format.manifest import Manifest, Part
from .blobs import Blobs, parallel
from .loading import Loader


class Verifier:
    """Reads blobs and compares them with their digests. Each is read once, however many checkpoints share it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._sizes: dict[str, int] = {}
        """Of blobs that are whole."""
        self._damages: dict[str, str] = {}

    def check(self, manifest: Manifest) -> tuple[int, tuple[str, ...]]:
        """How many blobs the checkpoint names, and what is wrong with each that is. At most four are in memory."""
        loader, damages = Loader(self._blobs, manifest), []
        wanted: dict[str, int | None] = {}
        """Digest -> size; None: any."""
        try:
            buffers = loader.state().buffers_blob
            wanted |= {} if buffers is None else {buffers: None}
        except CorruptCheckpointError as error:
            damages.append(str(error))
        for number in range(manifest.world_size):
            try:
                wanted |= self._of_part(manifest, loader.part(number))
            except CorruptCheckpointError as error:
                damages.append(str(error))
        found = parallel(lambda item: self._damage(*item), wanted.items())
        named = len({manifest.state, *(part.digest for part in manifest.parts), *wanted})
        return named, (*damages, *filter(None, found))

    def _of_part(self, manifest: Manifest, part: Part) -> dict[str, int | None]:
        sizes = blob_sizes(part.bytes, manifest.blob_bytes)
        if len(sizes) != len(part.blobs):
            raise CorruptCheckpointError(f"rank {part.rank} has {len(part.blobs)} blobs, expected {len(sizes)}")
        return {part.layout: None, **dict(zip(part.blobs, sizes, strict=True))}

    def _damage(self, digest: str, size: int | None) -> str:
        if digest not in self._sizes and digest not in self._damages:
            try:
                self._sizes[digest] = len(self._blobs.get(digest))
            except CorruptCheckpointError as error:
                self._damages[digest] = str(error)
        if digest in self._damages:
            return self._damages[digest]
        found = self._sizes[digest]
        return "" if size in (None, found) else f"{self._blobs.uri_of(digest)} has {found} bytes, expected {size}"
