"""`finetune logs` for a job in a cluster.

Following polls the API server instead of opening one stream per pod: lines of several pods stay in order of time, and
a broken connection loses nothing.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.errors import ApiError

from ..exit_status import CommandError
from ..log_lines import LogLine, by_time, of_newest_run
from ..terminal import echo
from .jobs import ClusterJobs
from .lenient_job import is_settled, lenient_job
from .pod_logs import PodLog, ReadPosition, missing_attempts, new_entries, pod_logs
from .retry import Pause, Retry

_POLL_SECONDS = 1.0
_PODS_PER_SECOND = 32
"""One request per pod, which the API server forwards to the node of the pod."""
_PODS_AT_ONCE = 32


@dataclass
class ClusterLogs:
    """Logs of the workers of a job, optionally of one stage or attempt only."""

    jobs: ClusterJobs
    name: str
    stage: Stage | None
    attempt: int | None
    _positions: dict[str, ReadPosition] = field(default_factory=dict)
    _fully_read: set[str] = field(default_factory=set)
    """Pods that have ended and whose logs were read completely."""
    _reported: set[str] = field(default_factory=set)

    async def now(self) -> list[LogLine]:
        """Return the logs of the newest run so far. Raises CommandError if it has no pods."""
        job, logs = await self._poll()
        wanted = self._wanted(of_newest_run(logs))
        entries = await self._read(wanted)
        self._report_missing(job, wanted)
        if not wanted:
            raise CommandError(f"{self.name} has no such pods; run `finetune status {self.name}` for its status")
        return entries

    async def follow(self, pause: Pause = asyncio.sleep) -> AsyncIterator[list[LogLine]]:
        """Yield the logs of the newest run, and of later ones, until the job has ended."""
        retry = Retry(_note, pause=pause)
        first: int | None = None
        while True:
            job, logs = await retry.call(self._poll)
            if logs and first is None:
                first = of_newest_run(logs)[0].run
            wanted = [log for log in self._wanted(logs) if first is not None and log.run >= first]
            unread = [log for log in wanted if log.pod not in self._fully_read]
            yield await self._read(unread)
            if is_settled(job):
                self._report_missing(job, wanted)
                return
            await pause(max(_POLL_SECONDS, len(unread) / _PODS_PER_SECOND))

    async def _poll(self) -> tuple[FineTuneJob, list[PodLog]]:
        """Read the job before the pods, so that the pods of an ended job are complete."""
        job = lenient_job(await self.jobs.get(self.name))
        return job, pod_logs(await self.jobs.pods(self.name))

    def _wanted(self, logs: list[PodLog]) -> list[PodLog]:
        return [log for log in logs if self.stage in (None, log.stage) and self.attempt in (None, log.attempt)]

    async def _read(self, logs: list[PodLog]) -> list[LogLine]:
        """Return new entries sorted by time."""
        limit = asyncio.Semaphore(_PODS_AT_ONCE)

        async def read(log: PodLog) -> list[LogLine]:
            async with limit:
                return await self._read_one(log)

        found = await asyncio.gather(*map(read, logs))
        return by_time(entry for entries in found for entry in entries)

    async def _read_one(self, log: PodLog) -> list[LogLine]:
        if log.waiting_reason:
            self._report_once(f"{log.pod} has not started: {log.waiting_reason}")
            return []
        position = self._positions.get(log.pod, ReadPosition())
        try:
            text = await self.jobs.log(log.pod, since=position.stamp)
        except ApiError as error:
            # 400: the container is starting; 404: the pod was deleted; 5xx: its node is unreachable.
            if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise
            self._report_once(f"{log.pod}: {error}")
            if error.is_missing and log.has_ended:
                self._fully_read.add(log.pod)
            return []
        entries, self._positions[log.pod] = new_entries(log, text, position)
        if log.has_ended:
            self._fully_read.add(log.pod)
        return entries

    def _report_missing(self, job: FineTuneJob, wanted: list[PodLog]) -> None:
        gone = missing_attempts(
            job.status.run.attempts, job.status.run.number, wanted, stage=self.stage, number=self.attempt
        )
        if gone:
            names = ", ".join(f"{entry.stage} attempt {entry.number}" for entry in gone)
            self._report_once(
                f"the pods of {names} were deleted, with their logs; "
                f"run `finetune status {self.name}` for the last lines of a failure"
            )

    def _report_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            _note(text)


def _note(text: str) -> None:
    """Print to standard error, so that standard output contains only logs."""
    echo(f"finetune: {text}", file=sys.stderr)
