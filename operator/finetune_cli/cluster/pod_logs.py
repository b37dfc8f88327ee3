"""Parse logs of pods from the API server. Pure.

Each line has the timestamp of the kubelet. It is the time of lines without their own time, and the position from which
the next request continues.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptStatus
from finetune_operator.manifests import Manifest

from ..log_lines import LogLine, LogSource, parse_line

_ENDED_PHASES = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True)
class PodLog(LogSource):
    """The log of one pod."""

    pod: str
    has_ended: bool
    waiting_reason: str = ""
    """Why the container has not started. Empty if it has."""


@dataclass(frozen=True)
class ReadPosition:
    """The position up to which a log has been read."""

    stamp: str = ""
    """Timestamp of the last line, in the format of the API server."""
    seen: int = 0
    """Number of lines read with this timestamp."""


def pod_logs(pods: Iterable[Manifest]) -> list[PodLog]:
    """Return the logs of the trainer pods, oldest attempt first."""
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
                has_ended=pod.get("status", {}).get("phase") in _ENDED_PHASES,
                waiting_reason=_waiting_reason(pod.get("status", {})),
            )
        except (KeyError, ValueError):
            continue  # not a trainer pod, although it has the label
        found.append(log)
    return sorted(found, key=lambda log: (log.attempt_order, log.index))


def new_entries(source: PodLog, text: str, position: ReadPosition) -> tuple[list[LogLine], ReadPosition]:
    """Return the entries after a position, and the new position.

    While the pod is running, a last line without a newline is left for the next call.
    """
    # Not splitlines(), which also splits at separators such as U+2028: a pod could forge timestamps with them.
    lines = (text if source.has_ended else text.rpartition("\n")[0]).split("\n")
    entries: list[LogLine] = []
    skip, last = position.seen, position
    for line in filter(None, lines):
        stamp, _, text_of_line = line.partition(" ")
        if stamp < position.stamp:
            continue
        if stamp == position.stamp and skip:
            skip -= 1
            continue
        last = ReadPosition(stamp, last.seen + 1 if stamp == last.stamp else 1)
        entries += parse_line(source, text_of_line, last_time=_utc(stamp))
    return entries, last


def missing_attempts(
    attempts: Iterable[AttemptStatus], run: int, found: list[PodLog], *, stage: Stage | None, number: int | None
) -> list[AttemptStatus]:
    """Return the requested attempts that are in status but have no pods."""
    there = {(log.run, log.stage, log.attempt) for log in found}
    return [
        entry
        for entry in attempts
        if stage in (None, entry.stage)
        and number in (None, entry.number)
        and (run, entry.stage, entry.number) not in there
    ]


def _waiting_reason(status: Manifest) -> str:
    if status.get("phase", "Pending") != "Pending":
        return ""
    states = (entry.get("state", {}).get("waiting", {}) for entry in status.get("containerStatuses") or [])
    conditions = (entry for entry in status.get("conditions") or [] if entry.get("status") == "False")
    reasons = (entry.get("message") or entry.get("reason") for entry in (*states, *conditions))
    return next((str(reason) for reason in reasons if reason), "it has not been scheduled yet")


def _utc(stamp: str) -> str:
    """Convert to UTC, like times of the trainer. Kubelets use the time zone of their node."""
    try:
        return datetime.fromisoformat(stamp).astimezone(UTC).isoformat(timespec="milliseconds")
    except ValueError:
        return ""
