"""What is watched of the children: Jobs of which there is news, and the pods that leave a stage's last word.

They bring their FineTuneJob into the queue; nothing is decided here. A FineTuneJob that is not over is looked at when
it is shown, and its children with it: so none of theirs is listed, and a start among thousands reads none.
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
"""Only rank 0's pod leaves a last word."""
_COALESCE_SECONDS = 0.2
"""A Job that goes changes several times within a moment; one look at the end of it is enough."""


@dataclass(frozen=True)
class Children:
    """Their part of the queue."""

    queue: KeyedQueue[JobKey]
    table: JobCache
    heard: Callable[[str], None]
    """Is told the kind of every object that is shown."""

    def watches(self, server: ApiServer, namespace: str, silence_seconds: float) -> tuple[Watch, Watch]:
        """To be run; an empty namespace: the whole cluster."""
        jobs, pods = path_of("batch/v1", "jobs", namespace), path_of("v1", "pods", namespace)
        ended = {"labelSelector": _FIRST_OF_JOB, "fieldSelector": "status.phase=Succeeded"}
        return (
            Watch(server, jobs, {"labelSelector": _OURS}, silence_seconds, self.job_shown, self.look_at_all),
            Watch(server, pods, ended, silence_seconds, self.pod_shown),
        )

    def job_shown(self, event: str, job: Manifest) -> None:
        """There may be news of a Job."""
        self.heard("Job")
        key = _key_of(job)
        is_awaited = self.table.waits(key) and bool((job.get("status") or {}).get("ready"))
        if not (has_news(event, job) or is_awaited) or self.table.rests(key):
            return
        if event != "DELETED":
            self.table.show_child(key, job)
        self.queue.add_after(key, _COALESCE_SECONDS)

    def pod_shown(self, event: str, pod: Manifest) -> None:
        """A pod has ended well. Its Job will tell so; what comes before is kept for the look that follows."""
        key = _key_of(pod)
        if event != "DELETED" and not self.table.rests(key):
            self.table.show_pod(key, pod)

    def look_at_all(self) -> None:
        """Whatever is not over may have ended unseen."""
        for key in self.table.unsettled():
            self.queue.add(key)


def _key_of(child: Manifest) -> JobKey:
    metadata = child["metadata"]
    return JobKey(metadata["namespace"], metadata["labels"].get(constants.LABEL_JOB, ""))
