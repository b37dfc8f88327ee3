"""Operations on a cluster that reconcile needs."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from finetune_api.progress import Progress

from ..manifests import JobKey, Manifest


class Cluster(Protocol):
    """Storage of FineTuneJobs and their children. Reads are live, or equivalent (see `cached_view_of`)."""

    async def get(self, key: JobKey) -> Manifest | None:
        """Return the FineTuneJob, or None."""

    async def list_jobs(self, key: JobKey, awaited: Sequence[str]) -> list[Manifest]:
        """Return all `batch/v1` Jobs with the label of the FineTuneJob, regardless of their owner.

        Jobs in `awaited` are missing only if they do not exist, even if the list is outdated.
        """

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Return all pods of these Jobs."""

    async def read_config(self, key: JobKey, child: str) -> str | None:
        """Return the configuration of an attempt as JSON; None if it does not exist."""

    async def read_labels(self, key: JobKey, kind: str, name: str) -> Mapping[str, str] | None:
        """Return the labels of a Secret or PersistentVolumeClaim in the namespace; None if it does not exist."""

    async def list_warnings(self, key: JobKey, names: tuple[str, ...]) -> list[Manifest]:
        """Return Warning Events for these Jobs and pods, oldest first."""

    async def read_queue_reason(self, key: JobKey, uid: str) -> str:
        """Return why Kueue does not admit the Job with this UID; empty if it reports no reason."""

    async def read_progress(self, pod: Manifest) -> Progress | None:
        """Return the response of a pod to `GET /progress`; None if it does not respond."""

    async def serves_pod_groups(self) -> bool:
        """Return whether PodGroups can be created, which the scheduler uses for gang scheduling."""

    async def create_child(self, manifest: Manifest) -> None:
        """Create a child. Does nothing if it exists; raises ClusterConflictError if it has another owner.

        A ConfigMap or PodGroup with other content is replaced if the Job of its attempt does not exist: the spec was
        changed after the cluster refused that Job.
        """

    async def delete_job(self, key: JobKey, name: str, uid: str, *, has_gang: bool = False) -> None:
        """Delete a Job, its ConfigMap, Service and pods, which get SIGTERM and their grace period.

        `has_gang`: also delete its PodGroup.

        The Job is listed until its last pod has ended. Does nothing if it does not exist or has another UID.
        """

    async def update_status(self, manifest: Manifest, status: Manifest) -> None:
        """Replace the status of the FineTuneJob that was read. Raises StaleError if it has changed since."""

    async def create_event(self, event: Manifest) -> None:
        """Create an Event. Does nothing if it exists: Events with equal names have equal content."""
