"""From a manifest to this rank's planes in host memory: read, verify, re-slice. Touches no engine."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from finetune_api.trainer_config import Message

from ...errors import BadConfigError, CorruptCheckpointError
from ..format.failures import first_fault
from ..format.layout import Layout, blob_sizes, check_parameters, pieces, plan
from ..format.manifest import Manifest, Part, State
from .blobs import Blobs, parallel

M = TypeVar("M", bound=Message)
ByteArray = npt.NDArray[np.uint8]


class Loader:
    """Reads one checkpoint. Every method raises CorruptCheckpointError for bytes that are missing or wrong."""

    def __init__(self, blobs: Blobs, manifest: Manifest) -> None:
        self._blobs = blobs
        self.manifest = manifest

    def check_complete(self) -> None:
        """Every blob is there with its size; the small ones are read and verified, the data blobs only at `stage`."""
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
        """What is the same on every rank."""
        return _parse(State, self._blobs.get(self.manifest.state))

    def buffers(self, state: State) -> bytes:
        """The persistent buffers' bytes."""
        return b"" if state.buffers_blob is None else self._blobs.get(state.buffers_blob)

    def part(self, rank: int) -> Part:
        """One rank's part."""
        return _parse(Part, self._blobs.get(self.manifest.parts[rank].digest))

    def layout(self, part: Part) -> Layout:
        """What the part holds."""
        return _parse(Layout, self._blobs.get(part.layout))

    def stage(
        self, buffer: ByteArray, wanted: Layout, shapes: dict[str, tuple[int, ...]], *, rank: int, planes: int
    ) -> tuple[float, ...]:
        """Fill `buffer` with the first `planes` of the wanted planes; returns Adam's step of each wanted fragment.

        Reads this rank's own part if that is enough, else every rank's. `shapes` are those of all trained parameters.
        Raises BadConfigError if the checkpoint does not fit them.
        """
        assert buffer.nbytes == wanted.bytes(planes)
        parts = self._parts(wanted, rank)
        layouts = parallel(self.layout, parts)
        check_parameters(layouts, shapes)
        copies = plan(wanted, layouts)
        work = pieces(copies, wanted, layouts, planes=planes, blob_bytes=self.manifest.blob_bytes)

        def fetch(key: tuple[int, int]) -> None:
            part, number = parts[key[0]], key[1]
            size = blob_sizes(part.bytes, self.manifest.blob_bytes)[number]
            wanted_pieces = work[key]
            if len(wanted_pieces) == 1 and wanted_pieces[0].size == size:  # the whole blob, as it is
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
        """The own part where it covers all that is wanted: the usual case, and then no rank reads another's bytes."""
        if rank < self.manifest.world_size:
            part = self.part(rank)
            try:
                plan(wanted, [self.layout(part)])
            except BadConfigError:
                pass
            else:
                return [part]
        return parallel(self.part, range(self.manifest.world_size))


def _parse(model: type[M], content: bytes) -> M:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise CorruptCheckpointError(f"a {model.__name__} blob cannot be read: {first_fault(error)}") from error
