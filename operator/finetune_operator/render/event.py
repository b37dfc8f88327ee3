"""An announcement as a Kubernetes Event on the FineTuneJob."""

import hashlib

from finetune_api import constants

from ..manifests import Manifest
from ..policy.events import Announcement

_MAX_MESSAGE = 1024
"""The API server's limit for `events`."""


def render_event(owner: Manifest, told: Announcement, now: str) -> Manifest:
    """Named by what it tells: creating it twice, also after a crash in between, makes one."""
    name, namespace, uid = (owner["metadata"][field] for field in ("name", "namespace", "uid"))
    digest = hashlib.sha256(f"{uid}.{told.identity}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{digest}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": constants.API_VERSION,
            "kind": constants.KIND,
            "name": name,
            "namespace": namespace,
            "uid": uid,
        },
        "type": "Warning" if told.is_warning else "Normal",
        "reason": told.reason,
        "message": told.message[:_MAX_MESSAGE],
        "source": {"component": constants.MANAGED_BY},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
