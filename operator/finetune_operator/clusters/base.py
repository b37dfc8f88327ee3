"""The few things that reconcile needs from a cluster."""

from typing import Protocol

from finetune_api.progress import Progress

from ..manifests import JobKey, Manifest


class Cluster(Protocol):
    """A place where FineTuneJobs and their children live. Reads are live; nothing is cached."""

    async def get(self, key: JobKey) -> Manifest | None:
        """The FineTuneJob, or None."""

    async def list_jobs(self, key: JobKey) -> list[Manifest]:
        """Every `batch/v1` Job that carries the FineTuneJob's label, whoever owns it."""

    async def list_pods(self, key: JobKey) -> list[Manifest]:
        """Every pod that carries the FineTuneJob's label."""

    async def apply(self, manifest: Manifest) -> None:
        """Create a child. One of the same owner is left alone; another owner's raises ClusterConflictError."""

    async def delete_job(self, key: JobKey, name: str, uid: str) -> None:
        """Delete a Job and its pods, which get SIGTERM and their grace; it is listed until the last pod has ended.

        One that is gone, or that has another uid by now, is left alone.
        """

    async def patch_status(self, key: JobKey, uid: str, status: Manifest) -> None:
        """Replace the status of the FineTuneJob with that uid."""

    async def read_progress(self, key: JobKey, job_name: str) -> Progress | None:
        """What rank 0 of a Job answers to `GET /progress`; None while it does not answer."""
