"""`finetune logs` of a job in a cluster: the pods of an attempt, asked through the API server.

Following asks again and again instead of holding a stream for each pod: what several pods say stays in the order of
time, and a connection that breaks costs nothing.
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
from ..log_lines import LogEntry, by_time, of_newest_run
from ..terminal import say
from .jobs import ClusterJobs
from .lenient_job import is_settled, lenient_job
from .pod_logs import Mark, PodLog, missing_attempts, new_entries, pod_logs
from .retry import Pause, Retry

_LOOK_SECONDS = 1.0
_PODS_PER_SECOND = 32
"""Every pod is one request, which the API server passes on to the pod's node."""
_PODS_AT_ONCE = 32


@dataclass
class ClusterLogs:
    """What the workers of a job log. `stage` and `attempt`: of these only; absent: the whole run."""

    jobs: ClusterJobs
    name: str
    stage: Stage | None
    attempt: int | None
    _marks: dict[str, Mark] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    """Pods that have ended and are read to their end."""
    _told: set[str] = field(default_factory=set)

    async def now(self) -> list[LogEntry]:
        """What the newest run has logged so far. Raises CommandError if no pod of it is there."""
        job, logs = await self._look()
        wanted = self._wanted(of_newest_run(logs))
        entries = await self._read(wanted)
        self._tell_missing(job, wanted)
        if not wanted:
            raise CommandError(f"{self.name} has no such pods now; `finetune status {self.name}` has what is known")
        return entries

    async def follow(self, pause: Pause = asyncio.sleep) -> AsyncIterator[list[LogEntry]]:
        """The newest run from its beginning, and what comes, until the job is over."""
        retry = Retry(_note, pause=pause)
        first: int | None = None
        while True:
            job, logs = await retry.call(self._look)
            if logs and first is None:
                first = of_newest_run(logs)[0].run
            wanted = [log for log in self._wanted(logs) if first is not None and log.run >= first]
            unread = [log for log in wanted if log.pod not in self._whole]
            yield await self._read(unread)
            if is_settled(job):
                self._tell_missing(job, wanted)
                return
            await pause(max(_LOOK_SECONDS, len(unread) / _PODS_PER_SECOND))

    async def _look(self) -> tuple[FineTuneJob, list[PodLog]]:
        """The job first: pods of one that is over say nothing new."""
        job = lenient_job(await self.jobs.get(self.name))
        return job, pod_logs(await self.jobs.pods(self.name))

    def _wanted(self, logs: list[PodLog]) -> list[PodLog]:
        return [log for log in logs if self.stage in (None, log.stage) and self.attempt in (None, log.attempt)]

    async def _read(self, logs: list[PodLog]) -> list[LogEntry]:
        """What is new in these, in the order of time."""
        limit = asyncio.Semaphore(_PODS_AT_ONCE)

        async def read(log: PodLog) -> list[LogEntry]:
            async with limit:
                return await self._read_one(log)

        found = await asyncio.gather(*map(read, logs))
        return by_time(entry for entries in found for entry in entries)

    async def _read_one(self, log: PodLog) -> list[LogEntry]:
        if log.waits:
            self._tell_once(f"{log.pod} has not started: {log.waits}")
            return []
        mark = self._marks.get(log.pod, Mark())
        try:
            text = await self.jobs.log(log.pod, since=mark.stamp)
        except ApiError as error:
            # 400: starting just now; 404: gone meanwhile; 5xx: its node does not answer.
            if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise
            self._tell_once(f"{log.pod}: {error}")
            if error.is_missing and log.has_ended:
                self._whole.add(log.pod)
            return []
        entries, self._marks[log.pod] = new_entries(log, text, mark)
        if log.has_ended:
            self._whole.add(log.pod)
        return entries

    def _tell_missing(self, job: FineTuneJob, wanted: list[PodLog]) -> None:
        gone = missing_attempts(
            job.status.run.attempts, job.status.run.number, wanted, stage=self.stage, number=self.attempt
        )
        if gone:
            names = ", ".join(f"{entry.stage} attempt {entry.number}" for entry in gone)
            self._tell_once(
                f"the pods of {names} were deleted, with their logs; "
                f"`finetune status {self.name}` has the last lines of what failed"
            )

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _note(text)


def _note(text: str) -> None:
    """Beside the log, not in it."""
    say(f"finetune: {text}", file=sys.stderr)
