"""Classify a failed attempt: the pod that failed first, the class of the failure, and how to correct it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.constants import Stage
from finetune_api.exit_codes import (
    ExitCode,
    RetryClass,
    name_of,
    out_of_memory_advice,
    resources_field,
    retry_class,
)
from finetune_api.v1alpha1 import FailureStatus

from ..observed import ObservedAttempt, ObservedPod

_SIGTERM_EXIT = 143
_BYSTANDER_EXITS = frozenset({int(ExitCode.STOPPED), _SIGTERM_EXIT})
"""Exit statuses of pods that were stopped because another pod failed."""

_SETTLE = timedelta(seconds=5)
"""Pods that end within this time of each other may have the same cause: the times have a resolution of one second, and
on a busy node the end of a killed container is recorded seconds later."""

_SHOWN_LINES = 10
"""Log lines that status shows for a pod without a termination message."""

_ADVICE = {
    ExitCode.DIVERGED: "Lower spec.training.learningRate, add a warmup, or search the data for corrupt records.",
    ExitCode.STORAGE_UNREACHABLE: "Check spec.storage.endpoint and its server; committed checkpoints are safe.",
    ExitCode.ACCESS_DENIED: "Check the credentials and that they may read the inputs and write under spec.output.uri.",
    ExitCode.INTERNAL_ERROR: "Read the log; if the failure repeats at the same step, inspect the data of that step.",
}
_NO_ACTION = "No action is required: the next attempt starts from the last checkpoint."
_REJECTED_ADVICE = "If it repeats, inspect the node: it has fewer resources available than the scheduler assumes."
SIDECAR_ADVICE = "inject sidecars as init containers with restartPolicy Always: they end with the pod and never fail it"
_CONTAINER_ADVICE = "Read the log of the container with kubectl logs -c, and correct it or what injects it."
_SIGKILL_ADVICE = (
    "The process was killed, often because of the memory limit; training resumes from the last checkpoint."
)


@dataclass(frozen=True)
class Failure:
    """The classification of a failed attempt."""

    retry_class: RetryClass
    exit_code: int
    status: FailureStatus
    never_ran: bool = False
    """Whether a kubelet rejected its pod."""


def detect_disruption(child: ObservedAttempt) -> FailureStatus | None:
    """Return a deleted or evicted pod of a running stage; None if there is none.

    It must be recorded while it exists: when the pods have ended, they may be removed without a trace of the cause.
    """
    if child.deleting or child.suspended:
        return None  # the deletion of pods is a consequence of the stop
    if child.failing:
        return _missing_pod(child)
    pod = next((pod for pod in child.pods if pod.due_at), None)
    if pod is None:
        return None
    return FailureStatus(
        failure_class="Disrupted" if pod.disrupted else "PodDeleted",
        stage=str(child.stage),
        attempt=child.attempt,
        pod=pod.name,
        node=pod.node,
        message=f"{pod.name} was {'evicted' if pod.disrupted else 'deleted'}, so the other pods are stopped",
        advice=_NO_ACTION,
    )


def _missing_pod(child: ObservedAttempt) -> FailureStatus | None:
    """Return the pod whose deletion made the Job fail, if it is gone while others are still being stopped.

    Those are deleted too, as a consequence, so the first one is known only while it is the only one that is missing. A
    pod that failed by itself is kept, and is then the cause.
    """
    exits = {pod.exit_code for pod in child.pods if pod.exit_code}
    has_failed = any(pod.phase == "Failed" and not pod.due_at for pod in child.pods)
    gone = _deleted(child)
    if not child.pods or len(child.pods) != child.expected_pods - 1 or has_failed or not exits <= _BYSTANDER_EXITS:
        return None
    return FailureStatus(
        failure_class="PodDeleted",
        stage=str(child.stage),
        attempt=child.attempt,
        pod=gone,
        message=f"{gone} was deleted, so the other pods are stopped",
        advice=_NO_ACTION,
    )


def classify_failure(child: ObservedAttempt, detected: FailureStatus | None = None) -> Failure:
    """Classify a failed attempt by its most severe pod: permanent, then disruption, then retryable.

    Among pods of the same class, the one that ended first is the cause. The others were stopped, or lost their peer
    during a collective. `detected` is the disruption that was detected while the stage was running; it is used if no
    pod is left.
    """
    failed = [pod for pod in child.pods if pod.exit_code]
    if child.lost:
        return _lost(child)
    permanent = any(_class_of(pod) is RetryClass.PERMANENT for pod in failed)
    refused = next((pod for pod in child.pods if pod.is_overusing or pod.is_rejected), None)
    if refused is not None and not permanent:
        return _refused(child, refused)
    evicted = next((pod for pod in child.pods if pod.kubelet_reason), None)
    if not failed and evicted is not None:
        return _refused(child, evicted)
    injected = next((pod for pod in child.pods if _is_failed_by_another_container(pod)), None)
    if injected is not None and all(pod.exit_code in _BYSTANDER_EXITS for pod in failed):
        return _failed_container(child, injected)
    if not failed:
        return _without_pods(child, detected)
    culprits = [pod for pod in failed if pod.exit_code not in _BYSTANDER_EXITS] or failed
    first = min(culprits, key=lambda pod: (_class_of(pod), pod.finished_at, pod.index))
    if _class_of(first) is not RetryClass.PERMANENT:
        disrupted_pods = (pod for pod in child.pods if pod.kubelet_reason or (pod.exit_code and pod.disrupted))
        disrupted = next(disrupted_pods, None)
        first = disrupted or _first_of(culprits)
        if first.kubelet_reason:
            return _refused(child, first)
    code = first.exit_code or 0
    status = _status(child, first, code)
    if code in _BYSTANDER_EXITS and (gone := _deleted(child)):
        message = f"{gone} was deleted, so the other pods were stopped: {status.message}"
        status = status.model_copy(update={"failure_class": "PodDeleted", "pod": gone, "node": "", "message": message})
    return Failure(_class_of(first), code, status)


def _refused(child: ObservedAttempt, pod: ObservedPod) -> Failure:
    """Classify a pod that the kubelet ended or rejected, with the message of the kubelet.

    It is a disruption, unless the pod was evicted because of its own resource usage, which the next pod would repeat.
    """
    event = "was not started" if pod.is_rejected else "was ended"
    where = f" on node {pod.node}" if pod.node else ""
    code = pod.exit_code or 0
    lines = [f"{pod.name} {event}{where}: {pod.kubelet_reason}: {pod.kubelet_message}".rstrip(": ")]
    if pod.message is not None:
        lines += [line for line in (pod.message.error, *pod.message.last_lines) if line]
    status = FailureStatus(
        failure_class=pod.kubelet_reason,
        stage=str(child.stage),
        attempt=child.attempt,
        pod=pod.name,
        node=pod.node,
        exit_code=code,
        message="\n".join(lines)[:4096],
        advice=_refusal_advice(child.stage, pod),
    )
    kind = RetryClass.RETRYABLE if pod.is_overusing else RetryClass.DISRUPTION
    return Failure(kind, code, status, never_ran=pod.is_rejected)


def _refusal_advice(stage: Stage, pod: ObservedPod) -> str:
    if not pod.is_overusing:
        return _REJECTED_ADVICE if pod.is_rejected else _NO_ACTION
    field = resources_field(stage)
    return (
        f"Request what the job uses: memory or ephemeral-storage in the requests and limits of {field}, "
        "or spec.workers.sharedMemory. This includes datasets, models and checkpoints on the node, unless "
        "spec.workers.cache is set."
    )


def _first_of(culprits: list[ObservedPod]) -> ObservedPod:
    """Return the pod that ended first, or after an internal error the pod that ended soon after it with a cause.

    A worker that loses its peer ends with an internal error, and its end may be reported before that of the peer.
    """
    ordered = sorted(culprits, key=lambda pod: (pod.finished_at, pod.index))
    first = ordered[0]
    if first.exit_code != ExitCode.INTERNAL_ERROR:
        return first
    latest = datetime.fromisoformat(first.finished_at) + _SETTLE
    causes = (pod for pod in ordered if pod.exit_code != ExitCode.INTERNAL_ERROR)
    return next((pod for pod in causes if datetime.fromisoformat(pod.finished_at) <= latest), first)


def _deleted(child: ObservedAttempt) -> str:
    """Return the host name of a missing pod. Only deleted pods are missing: pods that ended by themselves are kept."""
    present = {pod.index for pod in child.pods}
    return next((f"{child.job_name}-{index}" for index in range(child.expected_pods) if index not in present), "")


def _class_of(pod: ObservedPod) -> RetryClass:
    is_free = (pod.disrupted or pod.kubelet_reason) and not pod.is_overusing
    return RetryClass.DISRUPTION if is_free else retry_class(pod.exit_code or 0)


def _is_failed_by_another_container(pod: ObservedPod) -> bool:
    """Whether a container that is not the trainer failed the pod. Those of a deleted pod are terminated."""
    return pod.phase == "Failed" and bool(pod.failed_containers) and not (pod.exit_code or pod.due_at or pod.disrupted)


def _failed_container(child: ObservedAttempt, pod: ObservedPod) -> Failure:
    """Classify the failure of a container that is not the trainer, which fails its pod and therefore the Job."""
    is_sidecar = pod.exit_code == 0
    when = "although its trainer had succeeded" if is_sidecar else "before its trainer was started"
    advice = (
        f"{_CONTAINER_ADVICE} {SIDECAR_ADVICE[0].upper()}{SIDECAR_ADVICE[1:]}." if is_sidecar else _CONTAINER_ADVICE
    )
    status = FailureStatus(
        failure_class="ContainerFailed",
        stage=str(child.stage),
        attempt=child.attempt,
        pod=pod.name,
        node=pod.node,
        message=f"{pod.name} failed {when}: {', '.join(pod.failed_containers)}"[:4096],
        advice=advice,
    )
    return Failure(RetryClass.RETRYABLE, 0, status)


def _without_pods(child: ObservedAttempt, detected: FailureStatus | None) -> Failure:
    """Classify a failed Job without pods: they were removed, which the training did not cause."""
    if detected is not None and (detected.stage, detected.attempt) == (child.stage, child.attempt):
        return Failure(RetryClass.DISRUPTION, 0, detected)
    status = FailureStatus(
        failure_class="Lost",
        stage=str(child.stage),
        attempt=child.attempt,
        message=f"{child.job_name} failed and its pods are gone",
        advice=_NO_ACTION,
    )
    return Failure(RetryClass.DISRUPTION, 0, status)


def _lost(child: ObservedAttempt) -> Failure:
    """Classify the loss of a node. Whether and how its pod ended is unknown."""
    pod = next(pod for pod in child.pods if pod.due_at and not pod.ended)
    node = pod.node or "(unknown)"
    status = FailureStatus(
        failure_class="NodeLost",
        stage=str(child.stage),
        attempt=child.attempt,
        pod=pod.name,
        node=pod.node,
        message=f"{pod.name} should have terminated by {pod.due_at}, but node {node} does not respond",
        advice="Check the node. The next attempt runs on other nodes; processes left on this one cannot write.",
    )
    return Failure(RetryClass.DISRUPTION, 0, status)


def _status(child: ObservedAttempt, pod: ObservedPod, code: int) -> FailureStatus:
    message = pod.message
    if message is not None:
        lines = [message.error, *message.last_lines]
    else:
        lines = [f"{pod.name} {_ended(pod, code)}", *_log_messages(pod.raw_message)]
    name = name_of(ExitCode.OUT_OF_MEMORY if pod.out_of_memory else code)
    return FailureStatus(
        failure_class="Disrupted" if pod.disrupted else name,
        stage=str(child.stage),
        attempt=child.attempt,
        rank=message.rank if message else None,
        pod=pod.name,
        node=pod.node,
        exit_code=code,
        message="\n".join(lines).strip()[:4096],
        advice=((message.advice if message else "") or _advice(child.stage, pod, code))[:1024],
    )


def _ended(pod: ObservedPod, code: int) -> str:
    if pod.out_of_memory:
        return "was killed by the kernel because it ran out of memory"
    return f"ended with status {code}"


def _log_messages(log_tail: str) -> Iterator[str]:
    """Yield the messages of the last log lines. The first line may be incomplete and is then returned unchanged."""
    for line in log_tail.splitlines()[-_SHOWN_LINES:]:
        try:
            yield str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            yield line


def _advice(stage: Stage, pod: ObservedPod, code: int) -> str:
    if pod.out_of_memory or code == ExitCode.OUT_OF_MEMORY:
        advice = out_of_memory_advice(stage)
        return f"{advice[0].upper()}{advice[1:]}."
    if code in ExitCode._value2member_map_:
        return _ADVICE.get(ExitCode(code), "")
    return _SIGKILL_ADVICE if code == 137 else ""
