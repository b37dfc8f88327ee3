"""Why pods of a running stage do not run: what the scheduler, the kubelet or the Job controller says of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from ..manifests import Manifest
from ..observed import ObservedPod, ObservedStage

PATIENCE = timedelta(seconds=20)
"""Pods that are placed and whose image is there run within seconds; before that, nothing is worth telling."""

_LONGEST_SECONDS = 30.0
"""For so long may the reason that is shown be an old one."""

_ORDINARY = frozenset({"ContainerCreating", "PodInitializing", ""})
"""What a kubelet says while it works, and also while it waits for a volume that will never come."""

SHOWN = 3
"""Pods that are named; the others wait for the same."""


def idle_pods(stage: ObservedStage, now: datetime) -> tuple[ObservedPod, ...] | None:
    """Pods that should run by now and do not; empty where pods are missing altogether, None where all is well."""
    if not stage.active or stage.deleting or now < datetime.fromisoformat(stage.created_at) + PATIENCE:
        return None
    idle = tuple(pod for pod in stage.pods if pod.phase == "Pending" and _is_late(pod, now))
    return idle if idle or len(stage.pods) < stage.expected_pods else None


def unexplained(stage: ObservedStage, idle: Sequence[ObservedPod]) -> tuple[str, ...]:
    """Names of objects whose Events have to be read for an explanation: a pod that the scheduler cannot place says so
    itself, and costs no call."""
    if not idle:
        return (stage.job_name,)
    return tuple(pod.name for pod in idle[:SHOWN] if pod.waiting in _ORDINARY)


def next_look_seconds(stage: ObservedStage, now: datetime) -> float:
    """When to look again at a stage whose pods wait: the longer they have waited, the later. When one of them runs, the
    watch of its Job tells sooner."""
    waited = (now - datetime.fromisoformat(stage.created_at)).total_seconds()
    return min(_LONGEST_SECONDS, max(0.0, waited / 4))


def explanation(stage: ObservedStage, idle: Sequence[ObservedPod], warnings: Sequence[Manifest]) -> str:
    """One sentence on how many pods wait, then what is said of them; `warnings` are Events, oldest first."""
    running = sum(pod.phase == "Running" for pod in stage.pods)
    lines = [f"{running} of {stage.expected_pods} pods of {stage.job_name} run"]
    told = {event["involvedObject"]["name"]: event.get("message", "") for event in warnings}
    for pod in idle[:SHOWN]:
        said = pod.waiting if pod.waiting not in _ORDINARY else told.get(pod.name, pod.waiting)
        lines.append(f"{pod.name}: {said or 'not started yet'}")
    if not idle:
        lines.append(told.get(stage.job_name, "the Job controller has not created the others yet"))
    return "\n".join(lines)


def _is_late(pod: ObservedPod, now: datetime) -> bool:
    return now >= datetime.fromisoformat(pod.created_at) + PATIENCE
