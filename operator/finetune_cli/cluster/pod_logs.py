"""Logs of pods as the API server gives them -> entries. Pure.

Every line comes with the time at which the kubelet took it. Lines without a time of their own are placed by it, and
who asks again knows by it what he has seen already.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptStatus
from finetune_operator.manifests import Manifest

from ..log_lines import LogEntry, LogSource, parse_line

_OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True)
class PodLog(LogSource):
    """The log of one pod."""

    pod: str
    has_ended: bool
    waits: str = ""
    """Why it has not begun. Empty: it has."""


@dataclass(frozen=True)
class Mark:
    """How far a log has been read."""

    stamp: str = ""
    """Time of the last line, as the API server wrote it."""
    seen: int = 0
    """Lines read that have this time."""


def pod_logs(pods: Iterable[Manifest]) -> list[PodLog]:
    """The trainer pods among them, oldest attempt first."""
    found = []
    for pod in pods:
        labels, annotations = (pod["metadata"].get(field) or {} for field in ("labels", "annotations"))
        try:
            log = PodLog(
                run=int(labels[constants.LABEL_RUN]),
                stage=Stage(labels[constants.LABEL_STAGE]),
                attempt=int(labels[constants.LABEL_ATTEMPT]),
                index=int(annotations[constants.COMPLETION_INDEX]),
                pod=pod["metadata"]["name"],
                has_ended=pod.get("status", {}).get("phase") in _OVER,
                waits=_waits(pod.get("status", {})),
            )
        except (KeyError, ValueError):
            continue  # somebody else's, with our label
        found.append(log)
    return sorted(found, key=lambda log: (log.attempt_order, log.index))


def new_entries(source: PodLog, text: str, mark: Mark) -> tuple[list[LogEntry], Mark]:
    """Entries after the mark, and the new mark. A last line without an end is left for later while the pod runs."""
    # Not splitlines(): it ends lines at separators such as U+2028 too, and a pod could forge the kubelet's time.
    lines = (text if source.has_ended else text.rpartition("\n")[0]).split("\n")
    entries: list[LogEntry] = []
    skip, last = mark.seen, mark
    for line in filter(None, lines):
        stamp, _, said = line.partition(" ")
        if stamp < mark.stamp:
            continue
        if stamp == mark.stamp and skip:
            skip -= 1
            continue
        last = Mark(stamp, last.seen + 1 if stamp == last.stamp else 1)
        entries += parse_line(source, said, last_time=_utc(stamp))
    return entries, last


def missing_attempts(
    attempts: Iterable[AttemptStatus], run: int, found: list[PodLog], *, stage: Stage | None, number: int | None
) -> list[AttemptStatus]:
    """The attempts that were asked for, that status knows and whose pods are gone."""
    there = {(log.run, log.stage, log.attempt) for log in found}
    return [
        entry
        for entry in attempts
        if stage in (None, entry.stage)
        and number in (None, entry.number)
        and (run, entry.stage, entry.number) not in there
    ]


def _waits(status: Manifest) -> str:
    if status.get("phase", "Pending") != "Pending":
        return ""
    states = (entry.get("state", {}).get("waiting", {}) for entry in status.get("containerStatuses") or [])
    conditions = (entry for entry in status.get("conditions") or [] if entry.get("status") == "False")
    reasons = (entry.get("message") or entry.get("reason") for entry in (*states, *conditions))
    return next((str(reason) for reason in reasons if reason), "it has not been scheduled yet")


def _utc(stamp: str) -> str:
    """As the trainer writes times: kubelets use the zone of their node."""
    try:
        return datetime.fromisoformat(stamp).astimezone(UTC).isoformat(timespec="milliseconds")
    except ValueError:
        return ""
