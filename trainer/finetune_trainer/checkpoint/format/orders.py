"""Messages between a rank and its uploader. Pure.

An order may be large, so it is in shared memory, and only its length is sent over the socket. Order and snapshot stay
unchanged until the answer arrives, so that a new uploader can take over the order of one that has died.
"""

from pathlib import Path
from typing import Any, Literal

from finetune_api.trainer_config import Message, StorageSettings

from .failures import Failure
from .layout import Layout
from .manifest import Manifest, State
from .retention import Keep


class Setup(Message):
    """Configuration of an uploader, the first message that it receives."""

    storage: StorageSettings
    run_uri: str
    attempt: int
    generation: int = 0
    cache: Path | None = None
    """Folder of the node-local cache; None: there is none."""


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
    """Rank 0's alone, without the digest of the buffers."""
    blob_bytes: int
    suspect: tuple[str, ...] = ()
    """Blobs that are known to be damaged in storage: uploaded again even if they seem to exist."""
    spread_seconds: float = 0.0
    """Time to spread the upload over, so that it does not slow the training down; 0: at full speed."""


class StoredPart(Message):
    """Result of a PartOrder."""

    digest: str
    bytes: int
    """Of the data blobs."""
    state: str = ""
    """Digest of the state blob, rank 0's alone."""
    suspect: tuple[str, ...] = ()
    """The suspect blobs of the order that were not uploaded again, and may still be damaged."""


class CommitOrder(Message):
    """Write the manifest, if no newer attempt has claimed the run."""

    kind: Literal["commit"] = "commit"
    manifest: Manifest
    has_conditions: bool = True
    """Whether storage honours conditional writes, as the claim has detected."""


class PruneOrder(Message):
    """Remove what is not kept. It is not retried, and stops when it is expedited: the next order finishes it."""

    kind: Literal["prune"] = "prune"
    keep: Keep


class Pruned(Message):
    """Result of a PruneOrder."""

    checkpoints: tuple[str, ...] = ()
    """Names, oldest first."""
    blobs: int = 0
    bytes: int = 0
    """Size of those blobs."""
    is_finished: bool = False
    """Nothing is left that can be removed now."""
    blocked_by: str = ""
    """Why no blobs are removed; empty: they are, when they are old enough."""


Order = PartOrder | CommitOrder | PruneOrder


class Answer(Message):
    """An uploader's report: the order is executed, or an error that prevents it."""

    done: bool = False
    """The last answer to the order."""
    part: StoredPart | None = None
    pruned: Pruned | None = None
    busy_seconds: float = 0.0
    """Time that the order took, without the waits that spread it."""
    failure: Failure | None = None
    """Without `is_final` or `done` the uploader retries."""
    is_final: bool = False
