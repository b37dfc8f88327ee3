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

from .cluster_jobs import ClusterJobs
from .exit_status import CommandError
from .log_lines import LogEntry, of_newest_attempt
from .patience import Patience, Pause
from .pod_logs import Mark, PodLog, missing_attempt, new_entries, pod_logs
from .shown_job import is_settled, shown_job

_LOOK_SECONDS = 1.0
_PODS_PER_SECOND = 32
"""Every pod is one request, which the API server passes on to the pod's node."""


@dataclass
class ClusterLogs:
    """What the workers of a job say. `stage` and `attempt`: of these only; absent: the newest."""

    jobs: ClusterJobs
    name: str
    stage: Stage | None
    attempt: int | None
    _marks: dict[str, Mark] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    """Pods that have ended and are read to their end."""
    _told: set[str] = field(default_factory=set)

    async def now(self) -> list[LogEntry]:
        """What the newest attempt has said so far. Raises CommandError if nothing of it is there."""
        job, wanted = await self._look()
        entries = await self._read(of_newest_attempt(wanted))
        self._tell_missing(job, wanted)
        if not wanted:
            raise CommandError(f"{self.name} has no such pods now; `finetune status {self.name}` has what is known")
        return entries

    async def follow(self, pause: Pause = asyncio.sleep) -> AsyncIterator[list[LogEntry]]:
        """The newest attempt from its beginning, and each later one as it comes, until the job is over."""
        patience = Patience(_note, pause=pause)
        first: tuple[int, int, int] | None = None
        while True:
            job, wanted = await patience.ask(self._look)
            if wanted and first is None:
                first = of_newest_attempt(wanted)[0].attempt_order
            unread = [log for log in wanted if first and log.attempt_order >= first and log.pod not in self._whole]
            yield await self._read(unread)
            if is_settled(job):
                self._tell_missing(job, wanted)
                return
            await pause(max(_LOOK_SECONDS, len(unread) / _PODS_PER_SECOND))

    async def _look(self) -> tuple[FineTuneJob, list[PodLog]]:
        """The job first: pods of one that is over say nothing new."""
        job = shown_job(await self.jobs.get(self.name))
        logs = pod_logs(await self.jobs.pods(self.name))
        return job, [log for log in logs if self.stage in (None, log.stage) and self.attempt in (None, log.attempt)]

    async def _read(self, logs: list[PodLog]) -> list[LogEntry]:
        """What is new in these, in the order of time."""
        found = await asyncio.gather(*(self._read_one(log) for log in logs))
        return sorted((entry for entries in found for entry in entries), key=lambda entry: entry.time)

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
            return []
        entries, self._marks[log.pod] = new_entries(log, text, mark)
        if log.has_ended:
            self._whole.add(log.pod)
        return entries

    def _tell_missing(self, job: FineTuneJob, wanted: list[PodLog]) -> None:
        gone = missing_attempt(job.status.attempts, job.status.run, wanted, stage=self.stage, number=self.attempt)
        if gone is not None:
            self._tell_once(
                f"the pods of {gone.stage} attempt {gone.number} are gone, and their logs with them; "
                f"`finetune status {self.name}` has the last lines of what failed"
            )

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _note(text)


def _note(text: str) -> None:
    """Beside the log, not in it."""
    print(f"finetune: {text}", file=sys.stderr, flush=True)
