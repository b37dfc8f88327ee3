"""From a snapshot in host memory to a committed checkpoint: what an uploader does in storage.

Data blobs, layout, part, state: all content-addressed, harmless without a manifest. Then, by rank 0's uploader and when
all parts are there, the check that no newer attempt has claimed the run, and the manifest in one conditional put.
Whatever dies on the way leaves the checkpoint before as the newest.
"""

from collections.abc import Callable

from ..errors import FencedError
from .blobs import parallel
from .manifest import Part
from .orders import CommitOrder, Order, PartOrder, StoredPart
from .places import RunStorage
from .shared_memory import SharedMemory

Pace = Callable[[int], None]
"""Called with every number of bytes that is about to be sent; may wait."""


def carry_out(storage: RunStorage, order: Order, snapshot: SharedMemory, pace: Pace | None = None) -> StoredPart | None:
    """What the order says; a CommitOrder has no result. `snapshot` is the memory that a PartOrder is about."""
    if isinstance(order, CommitOrder):
        commit(storage, order)
        return None
    memory = snapshot.array(order.planes_bytes + order.buffers_bytes)
    return store_part(storage, order, memory.data, pace)


def store_part(storage: RunStorage, order: PartOrder, memory: memoryview, pace: Pace | None = None) -> StoredPart:
    """Upload what storage does not have yet of a rank's snapshot. `memory` holds its planes and buffers."""
    blobs, size = storage.blobs, order.planes_bytes
    blobs.suspect.update(order.suspect)
    cuts = [memory[at : min(at + order.blob_bytes, size)] for at in range(0, size, order.blob_bytes)]
    storage.copies.begin(size)
    digests = parallel(lambda content: blobs.put(content, pace=pace, keep=True), cuts)
    storage.copies.end()
    part = Part(
        rank=order.rank,
        layout=blobs.put_json(order.layout.model_dump()),
        blobs=tuple(digests),
        bytes=size,
        steps=order.steps,
        rng=order.rng,
    )
    digest, state = blobs.put_json(part.model_dump()), ""
    if order.state is not None:
        buffers = memory[size : size + order.buffers_bytes]
        stored = blobs.put(buffers) if order.state.buffers else None
        state = blobs.put_json(order.state.model_copy(update={"buffers_blob": stored}).model_dump())
    return StoredPart(digest=digest, bytes=size, state=state, suspect=tuple(blobs.suspect))


def commit(storage: RunStorage, order: CommitOrder) -> None:
    """Make the checkpoint exist. Raises FencedError if a newer attempt, or another process of this one, has the run."""
    manifest = order.manifest
    storage.claims.check()
    if not storage.catalogue.add(manifest, has_conditions=order.has_conditions):
        raise FencedError(
            f"{storage.catalogue.uri_of(manifest.name)} exists already: another process writes as attempt "
            f"{manifest.attempt}"
        )
