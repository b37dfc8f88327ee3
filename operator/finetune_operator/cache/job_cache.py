"""What the watches have shown last of every FineTuneJob: enough to know which ones need no look, or no live one."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.clock import utc_now
from finetune_api.constants import TERMINAL_CONDITIONS, Phase

from ..manifests import JobKey, Manifest, true_conditions
from .cached_view import CachedView, cached_view_of


@dataclass(frozen=True)
class Seen:
    """One object, as last shown."""

    resource_version: str
    phase: str
    rests: bool
    """Over, told so for this generation, and nothing is due later."""
    wakes_at: datetime | None = None
    """Over and told so, but its children are to be removed at this time; nothing is due before."""
    waits: bool = False
    """Status says that the cluster has no room for its pods."""


class JobCache:
    """FineTuneJobs by key. Not the truth: decisions are made on live reads, unless `glimpse` says that none is needed.

    Whole objects are kept only from the moment in which they are shown or written until the next pass.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._seen: dict[JobKey, Seen] = {}
        self._written: dict[JobKey, str] = {}
        self._newest: dict[JobKey, Manifest] = {}
        self._child: dict[JobKey, Manifest] = {}
        self._pod: dict[JobKey, Manifest] = {}
        self._kept = (self._newest, self._child, self._pod)

    def __len__(self) -> int:
        return len(self._seen)

    def phases(self) -> dict[str, int]:
        """How many objects are in each phase; those in which none is are named too."""
        counts = Counter(seen.phase for seen in self._seen.values())
        return {phase: counts[phase] for phase in Phase}

    def show(self, key: JobKey, body: Manifest) -> None:
        """Note what a watch has shown."""
        version = str(body["metadata"].get("resourceVersion", ""))
        self._seen[key] = _seen(version, body)
        written = self._written.get(key)
        self._newest.pop(key, None)
        # Another version is older than what we have written, or newer: who knows.
        if not is_settled_status(body) and written in (None, version):
            self._newest[key] = body

    def needs_look(self, key: JobKey) -> bool:
        """Whether what was shown last is unsettled. Our own last write is not: we know what comes next."""
        seen = self._seen.get(key)
        if seen is None or seen.rests or self._sleeps(seen):
            return False
        return self._written.get(key) != seen.resource_version

    def wakes_in(self, key: JobKey) -> float | None:
        """Seconds until something is due of an object that needs no look before; None where nothing is."""
        seen = self._seen.get(key)
        if seen is None or seen.wakes_at is None or not self._sleeps(seen):
            return None
        return (seen.wakes_at - self._now()).total_seconds()

    def waits(self, key: JobKey) -> bool:
        """Whether its pods wait for their cluster, so that it is news when one of them runs."""
        seen = self._seen.get(key)
        return seen is not None and seen.waits

    def _sleeps(self, seen: Seen) -> bool:
        return seen.wakes_at is not None and seen.wakes_at > self._now()

    def show_child(self, key: JobKey, job: Manifest) -> None:
        """Note the child of which there was news last."""
        self._child[key] = job

    def show_pod(self, key: JobKey, pod: Manifest) -> None:
        """Note rank 0's pod that has ended well last."""
        self._pod[key] = pod

    def wrote(self, key: JobKey, body: Manifest) -> None:
        """We have written this version ourselves, and know what comes next."""
        self._written[key] = str(body["metadata"]["resourceVersion"])
        if is_settled_status(body):
            for known in self._kept:
                known.pop(key, None)
        else:
            self._newest[key] = body

    def glimpse(self, key: JobKey) -> CachedView | None:
        """What a pass may take for a live look, once; None: it has to look."""
        job, child, pod = (known.pop(key, None) for known in self._kept)
        return None if job is None else cached_view_of(job, child, pod)

    def remove(self, key: JobKey) -> None:
        """The object is gone."""
        self._seen.pop(key, None)
        self._written.pop(key, None)
        for known in self._kept:
            known.pop(key, None)

    def rests(self, key: JobKey) -> bool:
        """Whether an event about a child may be passed over. One that is not shown yet gets its look when it is."""
        seen = self._seen.get(key)
        return seen is None or seen.rests or self._sleeps(seen)

    def unsettled(self) -> tuple[JobKey, ...]:
        """Those of which something is to come."""
        return tuple(key for key, seen in self._seen.items() if not seen.rests and not self._sleeps(seen))

    def versions(self) -> dict[JobKey, str]:
        """What the watches show now: key -> resource version."""
        return {key: seen.resource_version for key, seen in self._seen.items()}

    def missed(self, before: dict[JobKey, str], listed: dict[JobKey, str]) -> tuple[JobKey, ...]:
        """Keys of a live list that the watches show otherwise, or still show though gone.

        `before` is what they showed before the list was asked for: what has moved since then is not missed, the watch
        may be ahead of the list.
        """
        shown = self.versions()
        differing = (key for key in {**before, **listed} if before.get(key) != listed.get(key))
        return tuple(key for key in differing if shown.get(key) == before.get(key))


_NEWS = frozenset({"Complete", "FailureTarget", "Failed"})
"""FailureTarget: one pod has failed and the others are being ended, which is when they leave their last word."""


def has_news(event: str, job: Mapping[str, Any]) -> bool:
    """Whether an event about a child has news: it fails, is over, goes or is gone. How far it is, is asked by time."""
    return not _NEWS.isdisjoint(true_conditions(job)) or event == "DELETED" or "deletionTimestamp" in job["metadata"]


def is_settled_status(body: Mapping[str, Any]) -> bool:
    """The run is over, and its status speaks of this very spec."""
    status = body.get("status") or {}
    is_over = not TERMINAL_CONDITIONS.isdisjoint(true_conditions(body))
    return is_over and status.get("observedGeneration") == body["metadata"].get("generation")


def _seen(version: str, body: Mapping[str, Any]) -> Seen:
    status = body.get("status") or {}
    phase, ttl = status.get("phase", Phase.PENDING), (body.get("spec") or {}).get("ttlSecondsAfterFinished")
    run = status.get("run") or {}
    waits = phase == Phase.PENDING and isinstance(run, dict) and bool(run.get("stage"))
    if not is_settled_status(body):
        return Seen(version, phase, rests=False, waits=waits)
    if not isinstance(run, dict):  # the flat shape of earlier versions: a look migrates it
        return Seen(version, phase, rests=False)
    if ttl is None or run.get("childrenRemoved"):
        return Seen(version, phase, rests=True)
    try:
        wakes_at = datetime.fromisoformat(run["completionTime"]) + timedelta(seconds=ttl)
    except (KeyError, ValueError, TypeError, OverflowError):
        wakes_at = None  # a look will tell
    return Seen(version, phase, rests=False, wakes_at=wakes_at)
