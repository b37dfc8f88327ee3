"""When what the watches have shown is enough for a pass, and a live look would find nothing else that matters. Pure.

That holds twice in an undisturbed life: at its very beginning, and when the one Job that status waits for is complete.
Everything else is looked at live: what has failed, changed, been suspended or deleted, and whatever time has brought.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..manifests import Manifest, controller_uid, true_conditions


@dataclass(frozen=True)
class CachedView:
    """A FineTuneJob and those of its Jobs that a pass has to see."""

    job: Manifest
    children: tuple[Manifest, ...]
    pods: tuple[Manifest, ...] | None = None
    """Of the children; None: they have to be asked for."""


def cached_view_of(job: Manifest, child: Manifest | None, pod: Manifest | None = None) -> CachedView | None:
    """From the newest version of the object, the Job of which there was news last, and rank 0's pod that has ended well
    last; None: look live.

    The version is the newest that anybody has told us: where it is not the newest that there is, the write of status is
    refused. Children have been created by then, all under names that a look at the newer version would give them too,
    or they belong to an object that is gone, and go with it.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    if "deletionTimestamp" in metadata:
        return None
    if child is None:
        return CachedView(job, ()) if _is_untouched(metadata, status) else None
    is_told = status.get("observedGeneration") == metadata["generation"]
    if not is_told or not _is_awaited(job, child):
        return None
    return CachedView(job, (child,), (pod,) if pod is not None and _is_last_word(child, pod) else None)


def _is_untouched(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """No pass has told of it. One that has died before it could has created the children that the next one will."""
    return not status and metadata["generation"] == 1


def _is_awaited(job: Manifest, child: Manifest) -> bool:
    """The Job is the object's, is complete, and is the only one whose end status does not know."""
    metadata = child["metadata"]
    is_ours = controller_uid(child) == job["metadata"]["uid"] and "deletionTimestamp" not in metadata
    attempts = (job["status"].get("run") or {}).get("attempts") or ()
    open_names = [attempt["jobName"] for attempt in attempts if not attempt.get("outcome")]
    return is_ours and "Complete" in true_conditions(child) and open_names == [metadata["name"]]


def _is_last_word(child: Manifest, pod: Manifest) -> bool:
    """The pod is the Job's, and its container has ended: of a Job that is complete, its rank 0's word alone counts."""
    containers = pod["status"].get("containerStatuses") or ()
    return controller_uid(pod) == child["metadata"]["uid"] and any("terminated" in one["state"] for one in containers)
