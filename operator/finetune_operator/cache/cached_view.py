"""Decide when a reconcile can use watch events instead of live reads. Pure.

Two cases need no live reads: a new FineTuneJob without status, and a job whose only open attempt has completed. All
other reconciles read live: after failures, changes, suspensions and deletions, and when they are triggered by time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.constants import UNOBSERVED_GENERATION

from ..manifests import Manifest, controller_uid, true_conditions


@dataclass(frozen=True)
class CachedView:
    """A FineTuneJob and the Jobs that a reconcile needs."""

    job: Manifest
    children: tuple[Manifest, ...]
    pods: tuple[Manifest, ...] | None = None
    """Pods of the children; None: they must be read."""


def cached_view_of(job: Manifest, child: Manifest | None, pod: Manifest | None = None) -> CachedView | None:
    """Return the view for a reconcile; None: read live.

    `job` is the newest version that a watch or a write returned, `child` the last Job with a relevant event, and `pod`
    the last succeeded pod of rank 0. If `job` is outdated, the write of status is rejected. Children that were created
    before have the names that a reconcile of the newer version would use, or are deleted with their owner.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    if "deletionTimestamp" in metadata:
        return None
    if child is None:
        return CachedView(job, ()) if _is_untouched(metadata, status) else None
    is_observed = status.get("observedGeneration") == metadata["generation"]
    if not is_observed or not _is_awaited(job, child):
        return None
    return CachedView(job, (child,), (pod,) if pod is not None and _is_result_pod(child, pod) else None)


def _is_untouched(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Whether no reconcile has written status. After a crash before that write, the same children are created again."""
    return status in ({}, {"observedGeneration": UNOBSERVED_GENERATION}) and metadata["generation"] == 1


def _is_awaited(job: Manifest, child: Manifest) -> bool:
    """Whether the Job belongs to the object, is complete, and is the only one without an outcome in status."""
    metadata = child["metadata"]
    is_ours = controller_uid(child) == job["metadata"]["uid"] and "deletionTimestamp" not in metadata
    attempts = (job["status"].get("run") or {}).get("attempts") or ()
    open_names = [attempt["jobName"] for attempt in attempts if not attempt.get("outcome")]
    return is_ours and "Complete" in true_conditions(child) and open_names == [metadata["name"]]


def _is_result_pod(child: Manifest, pod: Manifest) -> bool:
    """Whether the pod belongs to the Job and its container has terminated. Only rank 0 reports the result of a Job."""
    containers = pod["status"].get("containerStatuses") or ()
    return controller_uid(pod) == child["metadata"]["uid"] and any("terminated" in one["state"] for one in containers)
