"""Which blobs a checkpoint names, all the way down from its manifest."""

from collections.abc import Iterator

from ..format.manifest import Manifest
from .blobs import Blobs
from .loading import Loader


class References:
    """What part and state blobs name. Their digests are their names, so each is read once and known from then on."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[str, frozenset[str]] = {}

    def learn(self, manifest: Manifest) -> Iterator[None]:
        """Read what is not known yet, a blob at a time. Raises CorruptCheckpointError for one that cannot be read."""
        loader = Loader(self._blobs, manifest)
        if manifest.state not in self._known:
            yield
            buffers = loader.state().buffers_blob
            self._known[manifest.state] = frozenset() if buffers is None else frozenset({buffers})
        for number, reference in enumerate(manifest.parts):
            if reference.digest not in self._known:
                yield
                part = loader.part(number)
                self._known[reference.digest] = frozenset({part.layout, *part.blobs})

    def of(self, manifest: Manifest) -> set[str]:
        """Digests of all blobs of a checkpoint that was learnt."""
        roots = {manifest.state, *(part.digest for part in manifest.parts)}
        return roots.union(*(self._known[digest] for digest in roots))

    def forget_all_but(self, named: set[str]) -> None:
        """What is no checkpoint's any more need not be known."""
        self._known = {digest: names for digest, names in self._known.items() if digest in named}
