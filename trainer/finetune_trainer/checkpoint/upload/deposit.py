"""From a snapshot in host memory to a committed checkpoint: what an uploader does in storage.

Data blobs, layout, part, state: all content-addressed, harmless without a manifest. Then, by rank 0's uploader and when
all parts are there, the check that no newer attempt has claimed the run, and the manifest in one conditional put.
Whatever dies on the way leaves the checkpoint before as the newest. Last, checkpoints that are not kept are removed.
"""

import logging

from ...errors import FencedError, TrainerError
from ..format.failures import Failure
from ..format.manifest import Part
from ..format.orders import Answer, CommitOrder, Order, PartOrder, PruneOrder, StoredPart
from ..stored.blobs import parallel
from ..stored.places import RunStorage
from ..stored.pruning import Pruning
from .pace import Pace
from .shared_memory import SharedMemory

log = logging.getLogger(__name__)


def carry_out(storage: RunStorage, order: Order, snapshot: SharedMemory, pace: Pace) -> Answer:
    """What the order says. `snapshot` is the memory that a PartOrder is about.

    Raises what keeps a part or a commit from storage: without them there is no checkpoint. A removal that fails is
    answered like one that does not.
    """
    match order:
        case PartOrder():
            memory = snapshot.array(order.planes_bytes + order.buffers_bytes)
            return Answer(done=True, part=store_part(storage, order, memory.data, pace))
        case CommitOrder():
            commit(storage, order)
            return Answer(done=True)
        case PruneOrder():
            return prune(storage, order, pace)


def store_part(storage: RunStorage, order: PartOrder, memory: memoryview, pace: Pace) -> StoredPart:
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


def prune(storage: RunStorage, order: PruneOrder, pace: Pace) -> Answer:
    """Remove what is not kept, until somebody hurries."""
    pruning = Pruning(storage, order.keep)
    try:
        for _ in pruning.steps():
            if pace.is_hurried:
                break
    except Exception as error:
        if not isinstance(error, TrainerError):
            log.exception("old checkpoints are not removed for a reason of its own")
        return Answer(done=True, pruned=pruning.pruned, failure=Failure.of(error))
    return Answer(done=True, pruned=pruning.pruned)
