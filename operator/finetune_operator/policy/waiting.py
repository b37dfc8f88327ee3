"""Explain why pods of an active stage are not running, from reports of scheduler, kubelet and Job controller."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from ..manifests import Manifest
from ..observed import ORDINARY_WAITS, ObservedAttempt, ObservedPod

START_GRACE = timedelta(seconds=20)
"""Time in which pods normally start. Pods that have waited longer are reported."""

_LONGEST_SECONDS = 30.0
"""Longest interval between two checks, and so the maximum age of the reported reason."""

SHOWN = 3
"""Maximum number of pods in a message."""


def idle_pods(child: ObservedAttempt, now: datetime) -> tuple[ObservedPod, ...] | None:
    """Return the pods that should be running and are not. Empty: pods do not exist; None: no pod is late."""
    if not child.active or child.deleting or child.suspended:
        return None
    if now < datetime.fromisoformat(child.expected_since) + START_GRACE:
        return None
    idle = tuple(pod for pod in child.pods if pod.phase == "Pending" and _is_late(pod, now))
    return idle if idle or len(child.pods) < child.expected_pods else None


def queue_message(child: ObservedAttempt, reported: str) -> str:
    """Return that a suspended Job waits for its admission. `reported` is the reason that Kueue gives; empty: none."""
    if not child.queue:
        return f"{child.job_name} is suspended, but not by this operator: whoever suspended it must resume it"
    reason = reported or (
        "Kueue has not reported a reason; check that it is installed, and that the LocalQueue exists in the namespace"
    )
    return f"{child.job_name} waits in the queue {child.queue}: {reason}"


def unexplained(child: ObservedAttempt, idle: Sequence[ObservedPod]) -> tuple[str, ...]:
    """Return the names of objects whose Events must be read.

    The status of a pod that cannot be scheduled contains the reason, so no request is needed for it.
    """
    if not idle:
        return (child.job_name,)
    return tuple(pod.name for pod in idle[:SHOWN] if pod.waiting in ORDINARY_WAITS)


def next_check_seconds(child: ObservedAttempt, now: datetime) -> float:
    """Return the seconds until the next check of a stage with waiting pods. They grow with the time that pods have
    waited.

    The watch of its Job triggers an earlier check when a pod starts.
    """
    waited = (now - datetime.fromisoformat(child.expected_since)).total_seconds()
    return min(_LONGEST_SECONDS, max(0.0, waited / 4))


def explanation(child: ObservedAttempt, idle: Sequence[ObservedPod], warnings: Sequence[Manifest]) -> str:
    """Return how many pods are running, and the reasons of the others. `warnings` are Events, oldest first."""
    running = sum(pod.phase == "Running" for pod in child.pods)
    lines = [f"{running} of {child.expected_pods} pods of {child.job_name} are running"]
    if child.has_gang and child.pods and not any(pod.node for pod in child.pods):
        lines[0] += f"; PodGroup {child.job_name} waits until enough of them can be placed on nodes together"
    messages = {event["involvedObject"]["name"]: event.get("message", "") for event in warnings}
    for pod in idle[:SHOWN]:
        reason = pod.waiting if pod.waiting not in ORDINARY_WAITS else messages.get(pod.name, pod.waiting)
        lines.append(f"{pod.name}: {reason or 'not started yet'}")
    if not idle:
        lines.append(messages.get(child.job_name, "the Job controller has not created the other pods yet"))
    return "\n".join(lines)


def _is_late(pod: ObservedPod, now: datetime) -> bool:
    return now >= datetime.fromisoformat(pod.created_at) + START_GRACE
