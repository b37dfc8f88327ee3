"""Find a job by name, in the work folder or in a cluster, with one interface to read it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_operator.manifests import Manifest

from .cluster.jobs import ClusterAccess, ClusterJobs, cluster_jobs
from .exit_status import FAILED, USAGE, CommandError, MissingJobError
from .local.state import LocalJob, LocalState

DEFAULT_WORK_DIR = Path(".finetune")


class JobSource(Protocol):
    """One job in the work folder or in a cluster."""

    @property
    def name(self) -> str:
        """Name of the job."""

    @property
    def where(self) -> str:
        """Folder or cluster of the job, as text to show."""

    async def read(self) -> Manifest:
        """Return the current object. Raises MissingJobError if it no longer exists."""

    async def events(self) -> list[Manifest] | None:
        """Return the Events of the job, or None if they cannot be read."""

    def is_interrupted(self) -> bool:
        """True if it is known that no process runs the job, regardless of its status."""


@dataclass
class LocalJobSource:
    """A job of the work folder."""

    state: LocalState
    job: LocalJob

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.key.name

    @property
    def where(self) -> str:
        """Work folder of the job."""
        return f"local run in {self.state.work_dir}"

    async def read(self) -> Manifest:
        """Return the object as last written."""
        self.job = self.state.find(str(self.job.key))
        return self.job.manifest

    async def events(self) -> list[Manifest] | None:
        """Return an empty list: local runs create no Events."""
        return []

    def is_interrupted(self) -> bool:
        """True if no process runs a job in the folder."""
        return not self.state.is_running


@dataclass
class ClusterJobSource:
    """A job of a cluster."""

    jobs: ClusterJobs
    name: str

    @property
    def where(self) -> str:
        """Namespace and context."""
        return f"namespace {self.jobs.namespace}, {self.jobs.where}"

    async def read(self) -> Manifest:
        """Return the object from the API server."""
        return await self.jobs.get(self.name)

    async def events(self) -> list[Manifest] | None:
        """Return the Events of the job."""
        return await self.jobs.events(await self.read())

    def is_interrupted(self) -> bool:
        """Return False: the command cannot determine whether an operator is running."""
        return False


@dataclass(frozen=True)
class JobSources:
    """The places that the user's options allow to search for a job."""

    work_dir: Path
    access: ClusterAccess

    def local(self, name: str | None) -> LocalJobSource | None:
        """Return the local run, or None if the cluster must be searched. Local runs take precedence.

        With options for a cluster, local runs are not searched. Raises MissingJobError if there is no local run and the
        options or the environment name no cluster to search.
        """
        names_folder = self.work_dir != DEFAULT_WORK_DIR
        if self.access.is_requested:
            if names_folder:
                raise CommandError(
                    "--work-dir cannot be combined with --namespace, --context or --kubeconfig; remove one of them",
                    USAGE,
                )
            if name is None:
                raise CommandError("NAME must be set for a job in a cluster", USAGE)
            return None
        state = LocalState(self.work_dir)
        try:
            return LocalJobSource(state, state.find(name))
        except MissingJobError:
            if names_folder or name is None or not self.access.is_configured():
                raise
            return None

    @asynccontextmanager
    async def open(self, name: str | None) -> AsyncIterator[JobSource]:
        """Open the source of a job. Raises CommandError if the job does not exist or cannot be reached."""
        local = self.local(name)
        if local is not None:
            yield local
            return
        assert name is not None, "local() raises an error for a cluster without a name"
        async with self.cluster(name) as jobs:
            yield ClusterJobSource(jobs, name)

    @asynccontextmanager
    async def cluster(self, name: str) -> AsyncIterator[ClusterJobs]:
        """Connect to the cluster of this job.

        If the options do not name a cluster, errors also say that the work folder has no such run.
        """
        try:
            async with cluster_jobs(self.access) as jobs:
                yield jobs
        except CommandError as error:
            if not self.access.is_requested and error.exit_status != FAILED:
                error.args = (f"{error}; and {self.work_dir} contains no run of {name}",)
            raise
