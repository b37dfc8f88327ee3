"""Render a Kubernetes Event on the FineTuneJob."""

import hashlib

from finetune_api import constants

from ..manifests import Manifest
from ..policy.events import JobEvent

_MAX_MESSAGE = 1024
"""Maximum length of the message of an Event in Kubernetes."""


def render_event(owner: Manifest, event: JobEvent, now: str) -> Manifest:
    """Return the Event. Its name is derived from its identity, so repeated creation results in one Event."""
    name, namespace, uid = (owner["metadata"][field] for field in ("name", "namespace", "uid"))
    digest = hashlib.sha256(f"{uid}.{event.identity}".encode()).hexdigest()[:16]
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
        "type": "Warning" if event.is_warning else "Normal",
        "reason": str(event.reason),
        "message": event.message[:_MAX_MESSAGE],
        "source": {"component": constants.MANAGED_BY},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
