"""The contents of a checkpoint.

manifests/<step>-a<attempt>.json  contains its own digest, and refers by SHA-256 to
  a state blob                    engine counters, parameter groups, and the state of the training loop (JSON)
  a part blob per rank            its random number generators, Adam steps, and (JSON), by SHA-256
    a layout blob                 which elements of which parameters (JSON, the same in every checkpoint)
    data blobs                    these elements and their moments, fp32

A checkpoint exists if and only if its manifest exists; the manifest is written last.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from finetune_api.trainer_config import Message

VERSION = 2
"""Format of the manifests that are written. In format 1, the small state is that of transformers' Trainer."""
OLDEST_VERSION = 1
"""Oldest format that is read."""

_NAME = re.compile(r"(\d{8,})-a(\d{4,})\.json")


class PartRef(Message):
    """One rank's part."""

    rank: int
    digest: str


class Manifest(Message):
    """A committed checkpoint. Its key contains step and attempt, see docs/decisions/0001."""

    version: int = VERSION
    step: int
    attempt: int
    run: int
    data_position: int | None = None
    """Global batches of training data consumed before the next step, over all epochs. Missing in manifests of earlier
    versions, where it equals the step; see `position`."""
    time: str
    """RFC 3339, UTC."""
    world_size: int
    zero_stage: int
    blob_bytes: int
    """Size of every data blob of a part but its last."""
    parts: tuple[PartRef, ...]
    state: str
    """Digest of the state blob."""
    parent_step: int | None = None
    """Step of the checkpoint that the training resumed from or saved before. Absent: the base model."""
    job: str = ""
    """The job: `default/topic-classifier (uid 1f3a9c42)`."""
    dataset_digest: str = ""
    model_digest: str = ""
    bytes: int = 0
    """Total size of the data blobs."""
    is_best: bool = False
    best_step: int | None = None
    """Step of the best state so far, which is exported after early stopping. Absent: early stopping is not used."""
    metrics: dict[str, float] = {}
    """Metrics of the validation split at this step."""

    @property
    def position(self) -> int:
        """The data position; in manifests without one it is the step."""
        return self.step if self.data_position is None else self.data_position

    @property
    def name(self) -> str:
        """`00001200-a0003`."""
        return manifest_name(self.step, self.attempt)


def serialize(manifest: Manifest) -> bytes:
    """Serialize the manifest to JSON, with the digest of its other fields."""
    document = manifest.model_dump(mode="json")
    if manifest.position == manifest.step:
        del document["data_position"]  # so that trainers that do not know the field can read the checkpoint
    return json.dumps(document | {"digest": digest_of(document)}, indent=1).encode()


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but `digest`, as JSON with sorted keys and without spaces.

    Every version of the format has the digest: otherwise damaged bytes could look like a manifest of another version.
    """
    rest = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Part(Message):
    """The state of one rank."""

    rank: int
    layout: str
    """Digest of the Layout blob."""
    blobs: tuple[str, ...]
    """Digests of the data blobs, in order."""
    bytes: int
    """Total size of the data blobs."""
    steps: tuple[float, ...]
    """Adam's step count of each fragment of the layout."""
    rng: dict[str, Any]
    """Random number generators, see `rng.capture`."""


class Buffer(Message):
    """One persistent module buffer within the buffers blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte."""
    size: int
    """Bytes."""


class State(Message):
    """The state that is the same on every rank."""

    engine: dict[str, int]
    """Counters of the DeepSpeed engine."""
    loss_scale: dict[str, int | float] = {}
    """State of the dynamic loss scale; empty unless the training is in Float16."""
    groups: tuple[dict[str, Any], ...]
    """Hyper-parameters of the optimizer's parameter groups."""
    buffers: tuple[Buffer, ...] = ()
    buffers_blob: str | None = None
    small_state: dict[str, Any]
    """State of the Trainer."""


def manifest_name(step: int, attempt: int) -> str:
    """The name of a manifest; names sort by step."""
    return f"{step:08d}-a{attempt:04d}"


def numbers_of(name: str) -> tuple[int, int]:
    """Step and attempt of `00001200-a0003`."""
    match = _NAME.fullmatch(f"{name}.json")
    assert match is not None
    return int(match[1]), int(match[2])


def newest_first(keys: list[str]) -> list[str]:
    """Names of the manifests among `keys` (file names), in the order in which a restore tries them.

    A newer attempt takes precedence over a late write of an older one, regardless of the step. Other names are ignored.
    """
    found = [(int(match[2]), int(match[1])) for match in map(_NAME.fullmatch, keys) if match]
    return [manifest_name(step, attempt) for attempt, step in sorted(found, reverse=True)]
