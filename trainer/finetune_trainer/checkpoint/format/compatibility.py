"""Whether a run can resume from a manifest, and why not if it cannot. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.trainer_config import TrainerConfig

from ...failures import first_fault
from .manifest import OLDEST_VERSION, VERSION, Manifest, digest_of

_KNOWN = f"{OLDEST_VERSION} to {VERSION}"


@dataclass(frozen=True)
class Lineage:
    """Identifies the checkpoints that a run can resume from."""

    job: str
    """`default/topic-classifier (uid 1f3a9c42)`."""
    model_digest: str
    dataset_digest: str

    @classmethod
    def of(cls, config: TrainerConfig) -> "Lineage":
        """The lineage of a run. Digests are empty if its data is not prepared yet."""
        job, prepared = config.job, config.prepared
        return cls(
            job=f"{job.namespace}/{job.name} (uid {job.uid})",
            model_digest=prepared.model_digest if prepared else "",
            dataset_digest=prepared.dataset_digest if prepared else "",
        )


class IncompatibleCheckpointError(ValueError):
    """The run cannot resume from the manifest. The caller prepends the address of the manifest to the text."""


class NewerFormatError(IncompatibleCheckpointError):
    """This version of the program is too old for the manifest."""


def read_manifest(content: bytes) -> Manifest:
    """Parse a manifest. Manifests without a digest were saved by an earlier version.

    Raises IncompatibleCheckpointError if it has another format, was changed, or is not a manifest.
    """
    document = _document(content)
    digest = document.pop("digest", None)
    if digest is not None and digest != digest_of(document):
        raise IncompatibleCheckpointError("is damaged: the SHA-256 of its fields does not match its digest")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:  # every format has this field
        raise NewerFormatError(f"was written by a newer finetune-operator (format {version}, known {_KNOWN})")
    if isinstance(version, int) and version < OLDEST_VERSION:
        raise IncompatibleCheckpointError(
            f"was written by an older finetune-operator (format {version}, known {_KNOWN})"
        )
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise IncompatibleCheckpointError(f"is not a manifest of format {_KNOWN}: {first_fault(error)}") from error


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise IncompatibleCheckpointError(f"is not a manifest of format {_KNOWN}: {error}") from error
    if not isinstance(document, dict):
        raise IncompatibleCheckpointError(f"is not a manifest of format {_KNOWN}: it is not a JSON object")
    return document


def check_lineage(manifest: Manifest, lineage: Lineage) -> None:
    """Check that the checkpoint belongs to the job, its base model and its dataset.

    Manifests without a job were saved by an earlier version. Raises IncompatibleCheckpointError.
    """
    if manifest.job not in {"", lineage.job}:
        raise IncompatibleCheckpointError(f"was saved by another job, {manifest.job}; this one is {lineage.job}")
    pairs = (
        ("from another base model", manifest.model_digest, lineage.model_digest),
        ("on another dataset", manifest.dataset_digest, lineage.dataset_digest),
    )
    found = [
        f"{what} (digest {_short(theirs)}, this run's is {_short(ours)})"
        for what, theirs, ours in pairs
        if theirs != ours
    ]
    if found:
        raise IncompatibleCheckpointError(f"was trained {' and '.join(found)}")


def _short(digest: str) -> str:
    return digest[:12] or "unknown"
