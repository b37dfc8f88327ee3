"""What a rank and its uploader say to each other. Pure.

An order lies in shared memory, for it may be large; over the socket goes only how long it is. Both stay as they are
until the answer has come, so an order whose uploader has died is given to the next one.
"""

from pathlib import Path
from typing import Any, Literal

from finetune_api.trainer_config import Message, StorageSettings

from .failures import Failure
from .layout import Layout
from .manifest import Manifest, State
from .retention import Keep


class Setup(Message):
    """For whom an uploader works; its first line of input."""

    storage: StorageSettings
    run_uri: str
    attempt: int
    cache: Path | None = None
    """Where the own host keeps copies; None: nowhere."""


class PartOrder(Message):
    """Store the snapshot of one rank: its planes, and behind them the module's buffers."""

    kind: Literal["part"] = "part"
    rank: int
    layout: Layout
    steps: tuple[float, ...]
    rng: dict[str, Any]
    planes_bytes: int
    buffers_bytes: int = 0
    state: State | None = None
    """Rank 0's alone, without the digest of the buffers."""
    blob_bytes: int
    suspect: tuple[str, ...] = ()
    """Blobs that storage is known to have damaged: uploaded again even where they seem to be there."""
    spread_seconds: float = 0.0
    """How long it may take, so that the training does not feel it; 0: as fast as it can."""


class StoredPart(Message):
    """What has become of a PartOrder."""

    digest: str
    bytes: int
    """Of the data blobs."""
    state: str = ""
    """Digest of the state blob, rank 0's alone."""
    suspect: tuple[str, ...] = ()
    """Of the order's suspect blobs those that did not come up, and may be damaged still."""


class CommitOrder(Message):
    """Write the manifest, if no newer attempt has claimed the run."""

    kind: Literal["commit"] = "commit"
    manifest: Manifest
    has_conditions: bool = True
    """Whether storage has conditional writes, as the claim has found."""


class PruneOrder(Message):
    """Remove what is not kept. It is not retried, and stops when it is expedited: the next order finishes it."""

    kind: Literal["prune"] = "prune"
    keep: Keep


class Pruned(Message):
    """What has become of a PruneOrder."""

    checkpoints: tuple[str, ...] = ()
    """Names, oldest first."""
    blobs: int = 0
    bytes: int = 0
    """Of those blobs."""
    is_finished: bool = False
    """Nothing is left that could go now."""
    blocked_by: str = ""
    """Why no blobs go; empty: they do, once they are old enough."""


Order = PartOrder | CommitOrder | PruneOrder


class Answer(Message):
    """What an uploader tells: that the order is carried out, or what is in the way."""

    done: bool = False
    """Nothing more is to come."""
    part: StoredPart | None = None
    pruned: Pruned | None = None
    busy_seconds: float = 0.0
    """Time that the order took, without what was waited to spread it."""
    failure: Failure | None = None
    """Without `is_final` or `done` the uploader tries on."""
    is_final: bool = False
