"""Kubernetes objects as dictionaries, and functions that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


def true_conditions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the conditions of an object that are True: type -> last transition time."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    held = (entry for entry in conditions if entry.get("status") == "True")
    return {entry.get("type", ""): entry.get("lastTransitionTime", "") for entry in held}


def controller_uid(manifest: Mapping[str, Any]) -> str:
    """Return the UID of the controlling owner; empty without one."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


@dataclass(frozen=True)
class JobKey:
    """Namespace and name of a FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
