"""Load-time resharding: from a manifest to this rank's verified arrays in host memory. Does not access an engine."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from finetune_api.trainer_config import Message

from ...errors import BadConfigError, CorruptCheckpointError
from ...failures import first_fault
from ..format.layout import Layout, blob_sizes, check_parameters, pieces, plan
from ..format.manifest import Manifest, Part, State
from .blobs import Blobs, parallel

M = TypeVar("M", bound=Message)
ByteArray = npt.NDArray[np.uint8]


class Loader:
    """Reads one checkpoint. All methods raise CorruptCheckpointError for missing or damaged bytes."""

    def __init__(self, blobs: Blobs, manifest: Manifest) -> None:
        self._blobs = blobs
        self.manifest = manifest

    def check_complete(self) -> None:
        """Check that every blob exists with its size. Small blobs are read and verified, data blobs only by `stage`."""
        self.state()
        parts = parallel(self.part, range(self.manifest.world_size))
        present = self._blobs.sizes()
        for part in parts:
            if part.layout not in present:
                raise CorruptCheckpointError(f"layout {part.layout} of rank {part.rank} is missing")
            expected = blob_sizes(part.bytes, self.manifest.blob_bytes)
            for digest, size in zip(part.blobs, expected, strict=True):
                if present.get(digest) != size:
                    found = f"has {present[digest]} bytes" if digest in present else "is missing"
                    raise CorruptCheckpointError(f"blob {digest} of rank {part.rank} {found}, expected {size} bytes")

    def state(self) -> State:
        """The state that is the same on every rank."""
        return _parse(State, self._blobs.get(self.manifest.state))

    def buffers(self, state: State) -> bytes:
        """The bytes of the persistent buffers."""
        return b"" if state.buffers_blob is None else self._blobs.get(state.buffers_blob)

    def part(self, rank: int) -> Part:
        """The part of one rank."""
        return _parse(Part, self._blobs.get(self.manifest.parts[rank].digest))

    def layout(self, part: Part) -> Layout:
        """The layout of the part."""
        return _parse(Layout, self._blobs.get(part.layout))

    def stage(
        self, buffer: ByteArray, wanted: Layout, shapes: dict[str, tuple[int, ...]], *, rank: int, arrays: int
    ) -> tuple[float, ...]:
        """Fill `buffer` with the first `arrays` of the wanted arrays; returns Adam's step of each wanted fragment.

        Reads only this rank's own part if it is sufficient, otherwise the parts of all ranks. `shapes`: of all trained
        parameters. Raises BadConfigError if the checkpoint does not match them.
        """
        assert buffer.nbytes == wanted.bytes(arrays)
        parts = self._parts(wanted, rank)
        layouts = parallel(self.layout, parts)
        check_parameters(layouts, shapes)
        copies = plan(wanted, layouts)
        work = pieces(copies, wanted, layouts, arrays=arrays, blob_bytes=self.manifest.blob_bytes)

        def fetch(key: tuple[int, int]) -> None:
            part, number = parts[key[0]], key[1]
            size = blob_sizes(part.bytes, self.manifest.blob_bytes)[number]
            wanted_pieces = work[key]
            if len(wanted_pieces) == 1 and wanted_pieces[0].size == size:  # the whole blob, unchanged
                to = wanted_pieces[0].to
                self._blobs.read_into(part.blobs[number], buffer.data[to : to + size])
                return
            blob = np.empty(size, dtype=np.uint8)
            self._blobs.read_into(part.blobs[number], blob.data)
            for piece in wanted_pieces:
                buffer[piece.to : piece.to + piece.size] = blob[piece.at : piece.at + piece.size]

        parallel(fetch, work)
        steps = dict.fromkeys(range(len(wanted.fragments)), 0.0)
        steps |= {copy.fragment: parts[copy.source].steps[copy.source_fragment] for copy in copies}
        return tuple(steps.values())

    def _parts(self, wanted: Layout, rank: int) -> list[Part]:
        """The rank's own part if it covers everything, as usual: then no rank reads another rank's bytes."""
        if rank < self.manifest.world_size:
            part = self.part(rank)
            try:
                plan(wanted, [self.layout(part)])
            except BadConfigError:
                pass
            else:
                return [part]
        return parallel(self.part, range(self.manifest.world_size))


class References:
    """The digests that part and state blobs refer to. Blobs are immutable, so each is read once and cached."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[str, frozenset[str]] = {}

    def read(self, manifest: Manifest) -> Iterator[None]:
        """Read the blobs that are not cached, one at a time. Raises CorruptCheckpointError if one cannot be read."""
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
        """Digests of all blobs of a checkpoint; `read` must be called first."""
        roots = {manifest.state, *(part.digest for part in manifest.parts)}
        return roots.union(*(self._known[digest] for digest in roots))

    def retain(self, named: set[str]) -> None:
        """Drop cached blobs that no checkpoint refers to anymore."""
        self._known = {digest: names for digest, names in self._known.items() if digest in named}


def _parse(model: type[M], content: bytes) -> M:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise CorruptCheckpointError(f"a {model.__name__} blob cannot be read: {first_fault(error)}") from error
