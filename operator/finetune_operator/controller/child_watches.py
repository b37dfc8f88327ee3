"""Watches of Jobs, and of the succeeded pods of rank 0, whose termination messages contain the results of stages.

Their events add the FineTuneJob to the queue. Children are not listed when the operator starts: every FineTuneJob that
has not ended is reconciled when it is listed, which reads its children.
"""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api import constants

from ..cache.job_cache import JobCache, has_news
from ..clusters.api_server import ApiServer
from ..clusters.kubernetes import path_of
from ..manifests import JobKey, Manifest
from .queue import KeyedQueue
from .watch import Watch

_OURS = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
_FIRST_OF_JOB = f"{_OURS},{constants.COMPLETION_INDEX}=0"
"""Only the pod of rank 0 reports a result."""
_COALESCE_SECONDS = 0.2
"""Delay of a reconcile after an event, because a Job that ends changes several times within a short time."""


@dataclass(frozen=True)
class Children:
    """Handlers that feed the queue from events of children."""

    queue: KeyedQueue[JobKey]
    cache: JobCache
    on_event: Callable[[str], None]
    """Called with the kind of the object of every event."""

    def watches(self, server: ApiServer, namespace: str, silence_seconds: float) -> tuple[Watch, Watch]:
        """Return the watches to run. An empty namespace: the whole cluster."""
        jobs, pods = path_of("batch/v1", "jobs", namespace), path_of("v1", "pods", namespace)
        ended = {"labelSelector": _FIRST_OF_JOB, "fieldSelector": "status.phase=Succeeded"}
        return (
            Watch(server, jobs, {"labelSelector": _OURS}, silence_seconds, self.job_shown, self.add_unsettled),
            Watch(server, pods, ended, silence_seconds, self.pod_shown),
        )

    def job_shown(self, event: str, job: Manifest) -> None:
        """Handle an event of a Job."""
        self.on_event("Job")
        key = _key_of(job)
        is_awaited = self.cache.is_waiting(key) and bool((job.get("status") or {}).get("ready"))
        if not (has_news(event, job) or is_awaited) or self.cache.is_settled(key):
            return
        if event != "DELETED":
            self.cache.record_child(key, job)
        self.queue.add_after(key, _COALESCE_SECONDS)

    def pod_shown(self, event: str, pod: Manifest) -> None:
        """Record a succeeded pod for the reconcile that the event of its Job triggers."""
        key = _key_of(pod)
        if event != "DELETED" and not self.cache.is_settled(key):
            self.cache.record_pod(key, pod)

    def add_unsettled(self) -> None:
        """Reconcile all jobs that have not ended, because events may have been missed."""
        for key in self.cache.unsettled():
            self.queue.add(key)


def _key_of(child: Manifest) -> JobKey:
    metadata = child["metadata"]
    return JobKey(metadata["namespace"], metadata["labels"].get(constants.LABEL_JOB, ""))
