"""Whether a manifest is one that this run can go on from, and in words what differs where it is not. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.trainer_config import TrainerConfig

from .failures import first_fault
from .manifest import VERSION, Manifest, digest_of


@dataclass(frozen=True)
class Lineage:
    """Whose checkpoints, and of what, a run can go on from."""

    job: str
    """`default/topic-classifier (uid 1f3a9c42)`."""
    model_digest: str
    dataset_digest: str

    @classmethod
    def of(cls, config: TrainerConfig) -> "Lineage":
        """That of a run. Digests are empty where its data is not prepared."""
        job, prepared = config.job, config.prepared
        return cls(
            job=f"{job.namespace}/{job.name} (uid {job.uid})",
            model_digest=prepared.model_digest if prepared else "",
            dataset_digest=prepared.dataset_digest if prepared else "",
        )


class UnfitError(ValueError):
    """Says what is wrong with a manifest; its address is to stand in front."""


class NewerFormatError(UnfitError):
    """This program is too old for it."""


def read_manifest(content: bytes) -> Manifest:
    """Raises UnfitError for another format, for changed bytes, and for what is no manifest at all.

    Those that hold no digest were saved before they did.
    """
    document = _document(content)
    digest = document.pop("digest", None)
    if digest is not None and digest != digest_of(document):
        raise UnfitError("is damaged: its fields have another SHA-256 than it says")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:  # a newer format may have any fields, but it has this one
        raise NewerFormatError(f"was written by a newer finetune-operator (format {version}, known {VERSION})")
    if isinstance(version, int) and version < VERSION:
        raise UnfitError(f"was written by an older finetune-operator (format {version}, known {VERSION})")
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise UnfitError(f"is not a manifest of format {VERSION}: {first_fault(error)}") from error


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise UnfitError(f"is not a manifest of format {VERSION}: {error}") from error
    if not isinstance(document, dict):
        raise UnfitError(f"is not a manifest of format {VERSION}: it is no JSON object")
    return document


def check_lineage(manifest: Manifest, lineage: Lineage) -> None:
    """Raises UnfitError if the checkpoint is another job's, or was trained from another base model or data set.

    Checkpoints that do not say whose they are were saved before they did.
    """
    if manifest.job not in {"", lineage.job}:
        raise UnfitError(f"was saved by another job, {manifest.job}; this one is {lineage.job}")
    pairs = (
        ("from another base model", manifest.model_digest, lineage.model_digest),
        ("on another data set", manifest.dataset_digest, lineage.dataset_digest),
    )
    found = [
        f"{what} (digest {_short(theirs)}, this run's is {_short(ours)})"
        for what, theirs, ours in pairs
        if theirs != ours
    ]
    if found:
        raise UnfitError(f"was trained {' and '.join(found)}")


def _short(digest: str) -> str:
    return digest[:12] or "unknown"
