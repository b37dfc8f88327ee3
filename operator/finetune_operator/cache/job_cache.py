"""Cache of the last watch events of all FineTuneJobs, to decide which need a reconcile, and which need live reads."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.clock import utc_now
from finetune_api.constants import TERMINAL_CONDITIONS, ConditionType, Phase

from ..manifests import JobKey, Manifest, true_conditions
from .cached_view import CachedView, cached_view_of


@dataclass(frozen=True)
class CachedJob:
    """The last known state of a FineTuneJob."""

    resource_version: str
    phase: str
    is_settled: bool
    """The run has ended, status reports it for this generation, and nothing is due later."""
    due_at: datetime | None = None
    """The run has ended, and nothing is due before this time."""
    is_waiting: bool = False
    """Status reports that the pods wait for resources of the cluster."""


class JobCache:
    """FineTuneJobs by key. Decisions are based on live reads, unless `cached_view` returns a view.

    Complete objects are kept only from a watch event or write until the next reconcile, to limit memory. In a standby
    replica no job needs a reconcile, so none are kept, and its first reconcile as the leader reads live.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now, *, is_standby: bool = False) -> None:
        self._now = now
        self.is_standby = is_standby
        """Whether another replica reconciles the jobs."""
        self._jobs: dict[JobKey, CachedJob] = {}
        self._written: dict[JobKey, str] = {}
        self._newest: dict[JobKey, Manifest] = {}
        self._child: dict[JobKey, Manifest] = {}
        self._pod: dict[JobKey, Manifest] = {}
        self._kept = (self._newest, self._child, self._pod)

    def __len__(self) -> int:
        return len(self._jobs)

    def phases(self) -> dict[str, int]:
        """Return the number of objects in each phase, including phases without objects."""
        counts = Counter(job.phase for job in self._jobs.values())
        return {phase: counts[phase] for phase in Phase}

    def record(self, key: JobKey, body: Manifest) -> None:
        """Record a watch event of a FineTuneJob."""
        version = str(body["metadata"].get("resourceVersion", ""))
        self._jobs[key] = _cached_job(version, body)
        written = self._written.get(key)
        self._newest.pop(key, None)
        # Another version may be older or newer than our last write.
        if not self.is_standby and not is_settled_status(body) and written in (None, version):
            self._newest[key] = body

    def needs_reconcile(self, key: JobKey) -> bool:
        """Whether the last event requires a reconcile. Events for our own last write do not."""
        job = self._jobs.get(key)
        if self.is_standby or job is None or job.is_settled or self._is_waiting_for_due(job):
            return False
        return self._written.get(key) != job.resource_version

    def seconds_until_due(self, key: JobKey) -> float | None:
        """Return the seconds until the next reconcile of a job that needs none before; None if nothing is due."""
        job = self._jobs.get(key)
        if self.is_standby or job is None or job.due_at is None or not self._is_waiting_for_due(job):
            return None
        return (job.due_at - self._now()).total_seconds()

    def is_waiting(self, key: JobKey) -> bool:
        """Whether its pods wait for the cluster, so that a reconcile is needed when one of them starts."""
        job = self._jobs.get(key)
        return job is not None and job.is_waiting

    def _is_waiting_for_due(self, job: CachedJob) -> bool:
        return job.due_at is not None and job.due_at > self._now()

    def record_child(self, key: JobKey, job: Manifest) -> None:
        """Record the last child with a relevant event."""
        self._child[key] = job

    def record_pod(self, key: JobKey, pod: Manifest) -> None:
        """Record the last succeeded pod of rank 0."""
        self._pod[key] = pod

    def record_write(self, key: JobKey, body: Manifest) -> None:
        """Record a version that this operator has written."""
        self._written[key] = str(body["metadata"]["resourceVersion"])
        if is_settled_status(body):
            for known in self._kept:
                known.pop(key, None)
        else:
            self._newest[key] = body

    def cached_view(self, key: JobKey) -> CachedView | None:
        """Return the view for the next reconcile, once; None: it must read live."""
        job, child, pod = (known.pop(key, None) for known in self._kept)
        return None if job is None else cached_view_of(job, child, pod)

    def remove(self, key: JobKey) -> None:
        """Remove a deleted object."""
        self._jobs.pop(key, None)
        self._written.pop(key, None)
        for known in self._kept:
            known.pop(key, None)

    def is_settled(self, key: JobKey) -> bool:
        """Whether events of children can be ignored. An unknown object is reconciled when its watch event arrives."""
        job = self._jobs.get(key)
        return self.is_standby or job is None or job.is_settled or self._is_waiting_for_due(job)

    def unsettled(self) -> tuple[JobKey, ...]:
        """Return the keys of jobs that are not settled."""
        return tuple(key for key in self._jobs if not self.is_settled(key))

    def versions(self) -> dict[JobKey, str]:
        """Return key -> last known resource version."""
        return {key: job.resource_version for key, job in self._jobs.items()}

    def missed(self, before: dict[JobKey, str], listed: dict[JobKey, str]) -> tuple[JobKey, ...]:
        """Return the keys whose last watch event differs from a live list.

        `before` are the versions before the list was requested. Objects that have changed since are not returned,
        because the watch may be ahead of the list.
        """
        shown = self.versions()
        differing = (key for key in {**before, **listed} if before.get(key) != listed.get(key))
        return tuple(key for key in differing if shown.get(key) == before.get(key))


_NEWS = frozenset({"Complete", "FailureTarget", "Failed"})
"""Conditions of a Job that require a reconcile. With FailureTarget, a pod has failed and the others are terminating."""


def has_news(event: str, job: Mapping[str, Any]) -> bool:
    """Whether an event of a Job requires a reconcile: failure, end or deletion. Progress is read periodically."""
    return not _NEWS.isdisjoint(true_conditions(job)) or event == "DELETED" or "deletionTimestamp" in job["metadata"]


def is_settled_status(body: Mapping[str, Any]) -> bool:
    """Whether the run has ended, its status describes the current spec, and no other run waits for its end or is
    refused."""
    status = body.get("status") or {}
    holding = true_conditions(body)
    if TERMINAL_CONDITIONS.isdisjoint(holding) or ConditionType.RECONCILING in holding:
        return False
    is_refused = status.get("phase") == Phase.INVALID
    return not is_refused and status.get("observedGeneration") == body["metadata"].get("generation")


def _cached_job(version: str, body: Mapping[str, Any]) -> CachedJob:
    status = body.get("status") or {}
    phase, spec = status.get("phase", Phase.PENDING), body.get("spec") or {}
    run = status.get("run") or {}
    is_waiting = phase == Phase.PENDING and isinstance(run, dict) and bool(run.get("stage"))
    if not is_settled_status(body):
        return CachedJob(version, phase, is_settled=False, is_waiting=is_waiting)
    if not isinstance(run, dict):  # the flat shape of earlier versions: a reconcile migrates it
        return CachedJob(version, phase, is_settled=False)
    has_ttl = "ttlSecondsAfterFinished" in spec and not run.get("childrenRemoved")
    if not has_ttl and "schedule" not in spec and "poll" not in (spec.get("data") or {}):
        return CachedJob(version, phase, is_settled=True)
    try:
        due_at = datetime.fromisoformat(status["dueTime"])
    except (KeyError, ValueError, TypeError):
        due_at = None  # determined by a reconcile
    return CachedJob(version, phase, is_settled=False, due_at=due_at)
