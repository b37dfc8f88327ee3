"""Where a job of some name is: in the work folder, or in a cluster. One way to read it for both."""

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


class JobPlace(Protocol):
    """One job, where it is."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def where(self) -> str:
        """For people: which folder, or which cluster."""

    async def read(self) -> Manifest:
        """The object as it stands. Raises MissingJobError once it is gone."""

    async def events(self) -> list[Manifest] | None:
        """What was announced on it; None if that cannot be read."""

    def is_left(self) -> bool:
        """True if it is known that nobody works at it, whatever its status says."""


@dataclass
class LocalPlace:
    """A job of the work folder."""

    state: LocalState
    job: LocalJob

    @property
    def name(self) -> str:
        """Its name."""
        return self.job.key.name

    @property
    def where(self) -> str:
        """Its folder."""
        return f"local run in {self.state.work_dir}"

    async def read(self) -> Manifest:
        """The object as last written."""
        self.job = self.state.find(str(self.job.key))
        return self.job.manifest

    async def events(self) -> list[Manifest] | None:
        """Local runs announce nothing: who runs them watches them."""
        return []

    def is_left(self) -> bool:
        """No process runs anything in the folder."""
        return not self.state.is_running


@dataclass
class ClusterPlace:
    """A job of a cluster."""

    jobs: ClusterJobs
    name: str

    @property
    def where(self) -> str:
        """Namespace and context."""
        return f"namespace {self.jobs.namespace}, {self.jobs.where}"

    async def read(self) -> Manifest:
        """The object as the API server has it."""
        return await self.jobs.get(self.name)

    async def events(self) -> list[Manifest] | None:
        """Its Events."""
        return await self.jobs.events(await self.read())

    def is_left(self) -> bool:
        """Nobody can know from here."""
        return False


@dataclass(frozen=True)
class Places:
    """Where the user's options let a job be looked for."""

    work_dir: Path
    access: ClusterAccess

    def local(self, name: str | None) -> LocalPlace | None:
        """The local run, which wins unless a cluster is asked for. None: look in the cluster.

        Raises MissingJobError where only the work folder is meant, or only it can be looked at.
        """
        names_folder = self.work_dir != DEFAULT_WORK_DIR
        if self.access.is_asked_for:
            if names_folder:
                raise CommandError("--work-dir means a local run, the other options a cluster: give one of them", USAGE)
            if name is None:
                raise CommandError("which job of the cluster? give its NAME", USAGE)
            return None
        state = LocalState(self.work_dir)
        try:
            return LocalPlace(state, state.find(name))
        except MissingJobError:
            if names_folder or name is None or not self.access.is_there():
                raise
            return None

    @asynccontextmanager
    async def open(self, name: str | None) -> AsyncIterator[JobPlace]:
        """The job's place. Raises CommandError if there is none, or none that can be reached."""
        local = self.local(name)
        if local is not None:
            yield local
            return
        assert name is not None, "without a name a local run is meant"
        async with self.cluster(name) as jobs:
            yield ClusterPlace(jobs, name)

    @asynccontextmanager
    async def cluster(self, name: str) -> AsyncIterator[ClusterJobs]:
        """A connection for looking at this job. Who has not asked for a cluster is told why one was looked at."""
        try:
            async with cluster_jobs(self.access) as jobs:
                yield jobs
        except CommandError as error:
            if not self.access.is_asked_for and error.exit_status != FAILED:
                error.args = (f"{error}; and {self.work_dir} holds no run of {name}",)
            raise
