"""Messages between a rank and its uploader. Pure.

An order can be large, so it is in shared memory and only its length is sent over the socket. Order and snapshot do not
change until the answer arrives, so a new uploader can take over the order of one that died.
"""

from pathlib import Path
from typing import Any, Literal

from finetune_api.trainer_config import Message, StorageSettings

from ...failures import Failure
from .layout import Layout
from .manifest import Manifest, State
from .retention import Keep


class Setup(Message):
    """Configuration of an uploader, and the first message that it receives."""

    storage: StorageSettings
    run_uri: str
    attempt: int
    generation: int = 0
    cache: Path | None = None
    """Folder of the node-local cache; None: no cache."""


class PartOrder(Message):
    """Store the snapshot of one rank: its optimizer state arrays, followed by the module's buffers."""

    kind: Literal["part"] = "part"
    rank: int
    layout: Layout
    steps: tuple[float, ...]
    rng: dict[str, Any]
    arrays_bytes: int
    buffers_bytes: int = 0
    state: State | None = None
    """Only from rank 0, without the digest of the buffers."""
    blob_bytes: int
    suspect: tuple[str, ...] = ()
    """Blobs known to be damaged in storage: uploaded again even if they seem to exist."""
    spread_seconds: float = 0.0
    """Duration to spread the upload over, so that it does not slow training down; 0: full speed."""


class StoredPart(Message):
    """Result of a PartOrder."""

    digest: str
    bytes: int
    """Total size of the data blobs."""
    state: str = ""
    """Digest of the state blob; only from rank 0."""
    suspect: tuple[str, ...] = ()
    """The suspect blobs of the order that were not uploaded again and may still be damaged."""


class CommitOrder(Message):
    """Write the manifest, unless a newer attempt has claimed the run."""

    kind: Literal["commit"] = "commit"
    manifest: Manifest
    has_conditions: bool = True
    """Whether storage honours conditional writes, as detected by the claim."""


class PruneOrder(Message):
    """Remove checkpoints that are not kept. Not retried, and stopped by `expedite`: the next order finishes it."""

    kind: Literal["prune"] = "prune"
    keep: Keep


class Pruned(Message):
    """Result of a PruneOrder."""

    checkpoints: tuple[str, ...] = ()
    """Names of the removed checkpoints, oldest first."""
    blobs: int = 0
    bytes: int = 0
    """Total size of the removed blobs."""
    is_finished: bool = False
    """Whether everything that can be removed now was removed."""
    blocked_by: str = ""
    """Why no blobs are removed; empty: blobs are removed once they are old enough."""


Order = PartOrder | CommitOrder | PruneOrder


class Answer(Message):
    """An uploader's report: the order is done, or an error prevents it."""

    done: bool = False
    """Whether this is the last answer to the order."""
    part: StoredPart | None = None
    pruned: Pruned | None = None
    busy_seconds: float = 0.0
    """Duration of the order, without the waits of a spread upload."""
    failure: Failure | None = None
    """Without `is_final` or `done`, the uploader retries."""
    is_final: bool = False
