"""Whether a manifest is one that this run can go on from, and in words what differs where it is not. Pure."""

import json

from pydantic import ValidationError

from finetune_api.trainer_config import Prepared

from .failures import first_fault
from .manifest import VERSION, Manifest


class UnfitError(ValueError):
    """Says what is wrong with a manifest; its address is to stand in front."""


def read_manifest(content: bytes) -> Manifest:
    """Raises UnfitError for another format, and for what is no manifest at all."""
    version = _version(content)
    if version is not None and version > VERSION:
        raise UnfitError(f"was written by a newer finetune-operator (format {version}, known {VERSION}): upgrade")
    if version is not None and version < VERSION:
        raise UnfitError(f"was written by an older finetune-operator (format {version}, known {VERSION})")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise UnfitError(f"is not a manifest of format {VERSION}: {first_fault(error)}") from error


def _version(content: bytes) -> int | None:
    """None where there is no number to compare. A newer format may have any fields, but it has this one."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else None


def check_origin(manifest: Manifest, prepared: Prepared) -> None:
    """Raises UnfitError if the checkpoint was trained from another base model, or on another data set."""
    pairs = (
        ("from another base model", manifest.model_digest, prepared.model_digest),
        ("on another data set", manifest.dataset_digest, prepared.dataset_digest),
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
