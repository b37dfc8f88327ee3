"""Read the jobs and logs of a work folder. It may be read while a run is active."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import KIND, Stage
from finetune_api.v1alpha1 import Status
from finetune_operator.manifests import JobKey, Manifest

from ..exit_status import MissingJobError
from ..locks import is_locked
from ..log_lines import LogSource

RUN_LOCK = "run.lock"


@dataclass(frozen=True)
class LogFile(LogSource):
    """Log file of one pod."""

    path: Path


@dataclass(frozen=True)
class LocalJob:
    """One FineTuneJob of a work folder."""

    key: JobKey
    folder: Path
    manifest: Manifest
    changed: float
    """Time of the last change, in seconds since the epoch."""

    @property
    def status(self) -> Status:
        """Status as last written."""
        return Status.read(self.manifest.get("status"))

    def logs(self) -> list[LogFile]:
        """Return the logs of its pods, oldest attempt first."""
        pattern = re.compile(rf"{re.escape(self.key.name)}-r(\d+)-({'|'.join(Stage)})-a(\d+)-(\d+)\.log")
        found = []
        for path in (self.folder / "logs").glob("*.log"):
            if match := pattern.fullmatch(path.name):
                run, stage, attempt, index = match.groups()
                found.append(LogFile(int(run), Stage(stage), int(attempt), int(index), path))
        return sorted(found, key=lambda log: (log.attempt_order, log.index))


class LocalState:
    """The jobs of a work folder."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir

    @property
    def is_running(self) -> bool:
        """Whether a process is running a job in this folder."""
        return is_locked(self.work_dir / RUN_LOCK)

    def jobs(self) -> list[LocalJob]:
        """Return all jobs, the most recently changed first."""
        paths = (self.work_dir / "jobs").glob(f"*/*/objects/{KIND}.*.json")
        found = [
            LocalJob(
                key=JobKey(path.parents[2].name, path.parents[1].name),
                folder=path.parents[1],
                manifest=json.loads(path.read_text()),
                changed=path.stat().st_mtime,
            )
            for path in paths
        ]
        return sorted(found, key=lambda job: job.changed, reverse=True)

    def find(self, name: str | None) -> LocalJob:
        """Return the job `name` or `namespace/name`, or without a name the most recently changed one.

        Raises MissingJobError, which lists the existing jobs.
        """
        jobs = self.jobs()
        matching = [job for job in jobs if name is None or name in (job.key.name, str(job.key))]
        if matching:
            return matching[0]
        if not jobs:
            raise MissingJobError(f"{self.work_dir} contains no runs; start one with `finetune run JOB.yaml`")
        known = ", ".join(sorted(job.key.name for job in jobs))
        raise MissingJobError(f"{self.work_dir} contains no run of {name}; existing jobs: {known}")
