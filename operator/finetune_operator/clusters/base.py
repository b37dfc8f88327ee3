"""The few things that reconcile needs from a cluster."""

from collections.abc import Sequence
from typing import Protocol

from finetune_api.progress import Progress

from ..manifests import JobKey, Manifest


class Cluster(Protocol):
    """A place where FineTuneJobs and their children live. Reads are live, or as good as that: see `glimpse`."""

    async def get(self, key: JobKey) -> Manifest | None:
        """The FineTuneJob, or None."""

    async def list_jobs(self, key: JobKey, awaited: Sequence[str]) -> list[Manifest]:
        """Every `batch/v1` Job that carries the FineTuneJob's label, whoever owns it.

        Those that are `awaited` are left out only where they are gone, and not where a list lags behind.
        """

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Every pod of the named Jobs."""

    async def read_config(self, key: JobKey, child: str) -> str | None:
        """What the pods of an attempt were told, as JSON; None where it is gone."""

    async def list_warnings(self, key: JobKey, names: tuple[str, ...]) -> list[Manifest]:
        """Warning Events about the named Jobs and pods, oldest first."""

    async def read_progress(self, pod: Manifest) -> Progress | None:
        """What a pod answers to `GET /progress`; None while it does not answer."""

    async def create_child(self, manifest: Manifest) -> None:
        """Create a child. One of the same owner is left alone; another owner's raises ClusterConflictError."""

    async def delete_job(self, key: JobKey, name: str, uid: str) -> None:
        """Delete a Job, what belongs to it and its pods, which get SIGTERM and their grace.

        It is listed until the last pod has ended. One that is gone, or that has another uid by now, is left alone.
        """

    async def update_status(self, manifest: Manifest, status: Manifest) -> None:
        """Replace the status of the FineTuneJob that was read. Raises StaleError if it has changed since."""

    async def create_event(self, event: Manifest) -> None:
        """Create an Event; one of the same name says the same and is left alone."""
