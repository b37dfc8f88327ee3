"""Why an attempt failed: which pod was first, what class it is, and what the user can do."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.constants import Stage
from finetune_api.exit_codes import ExitCode, FailureClass, failure_class, name_of, out_of_memory_advice
from finetune_api.v1alpha1 import FailureStatus

from ..observed import ObservedPod, ObservedStage

_SIGTERM_EXIT = 143
_BYSTANDER_EXITS = frozenset({int(ExitCode.STOPPED), _SIGTERM_EXIT})
"""How pods end that were stopped because another one failed."""

_SETTLE = timedelta(seconds=2)
"""Pods that end within this time of each other may have ended for the same cause; their times are whole seconds."""

_SHOWN_LINES = 10
"""Lines of a log that status shows where a pod has left no message of its own."""

_ADVICE = {
    ExitCode.DIVERGED: "Lower spec.training.learningRate, add a warmup, or look for broken records in the data.",
    ExitCode.STORAGE_UNREACHABLE: "Check spec.storage.endpoint and its server; committed checkpoints are safe.",
    ExitCode.ACCESS_DENIED: "Check the credentials and that they may read the inputs and write under spec.output.uri.",
    ExitCode.INTERNAL_ERROR: "Read the log; if the failure repeats at the same step, the data there is worth a look.",
}
_GOES_ON = "Nothing: the next attempt starts from the last checkpoint."
_REJECTED_ADVICE = "If it repeats, look at the node: it has less to offer than the scheduler counts there."
_OVERUSE_ADVICE = (
    "Request what the job uses: memory or ephemeral-storage in the requests and limits of spec.workers.resources, or "
    "spec.workers.sharedMemory. Data sets, models and checkpoints on the node count, unless spec.workers.cache is set."
)
_SIGKILL_ADVICE = (
    "The process was killed from outside, often by the memory limit; training goes on from the checkpoint."
)


@dataclass(frozen=True)
class Failure:
    """One failed attempt, judged."""

    failure_class: FailureClass
    exit_code: int
    status: FailureStatus
    never_ran: bool = False
    """A kubelet refused its pod."""


def detect_disruption(stage: ObservedStage) -> FailureStatus | None:
    """A pod of a running stage that somebody has deleted or evicted; None where there is none.

    It is gone once it has ended, and so may be the others, stopped with it: then nobody could name it any more.
    """
    if stage.failing or stage.deleting:
        return None  # what is being deleted now is a consequence
    pod = next((pod for pod in stage.pods if pod.due_at), None)
    if pod is None:
        return None
    return FailureStatus(
        failure_class="Disrupted" if pod.disrupted else "PodDeleted",
        stage=str(stage.stage),
        attempt=stage.attempt,
        pod=pod.name,
        node=pod.node,
        message=f"{pod.name} was {'evicted' if pod.disrupted else 'deleted'}, and the others stop with it",
        advice=_GOES_ON,
    )


def classify_failure(stage: ObservedStage, noticed: FailureStatus | None = None) -> Failure:
    """Permanent beats disruption beats retryable; among equals the pod that ended first is the cause.

    The others are bystanders: they were stopped, or lost their peer in the middle of a collective. `noticed` is what
    was noticed while the stage still ran; it stands where no pod is left to tell more.
    """
    failed = [pod for pod in stage.pods if pod.exit_code]
    if stage.lost:
        return _lost(stage)
    permanent = any(_class_of(pod) is FailureClass.PERMANENT for pod in failed)
    refused = next((pod for pod in stage.pods if pod.is_overusing or pod.is_rejected), None)
    if refused is not None and not permanent:
        return _refused(stage, refused)
    if not failed:
        evicted = next((pod for pod in stage.pods if pod.kubelet_reason), None)
        return _without_a_trace(stage, noticed) if evicted is None else _refused(stage, evicted)
    culprits = [pod for pod in failed if pod.exit_code not in _BYSTANDER_EXITS] or failed
    first = min(culprits, key=lambda pod: (_class_of(pod), pod.finished_at, pod.index))
    if _class_of(first) is not FailureClass.PERMANENT:
        disrupted_pods = (pod for pod in stage.pods if pod.kubelet_reason or (pod.exit_code and pod.disrupted))
        disrupted = next(disrupted_pods, None)
        first = disrupted or _first_of(culprits)
        if first.kubelet_reason:
            return _refused(stage, first)
    code = first.exit_code or 0
    status = _status(stage, first, code)
    if code in _BYSTANDER_EXITS and (gone := _deleted(stage)):
        told = f"{gone} was deleted, and the others stopped with it: {status.message}"
        status = status.model_copy(update={"failure_class": "PodDeleted", "pod": gone, "node": "", "message": told})
    return Failure(_class_of(first), code, status)


def _refused(stage: ObservedStage, pod: ObservedPod) -> Failure:
    """What the kubelet itself has ended, or never started, in its own words.

    Charged as a disruption, except where the pod was evicted for what it used itself: the next one would use it too.
    """
    told = "was not started" if pod.is_rejected else "was ended"
    where = f" on node {pod.node}" if pod.node else ""
    code = pod.exit_code or 0
    said = [f"{pod.name} {told}{where}: {pod.kubelet_reason}: {pod.kubelet_message}".rstrip(": ")]
    if pod.message is not None:
        said += [line for line in (pod.message.error, *pod.message.last_lines) if line]
    status = FailureStatus(
        failure_class=pod.kubelet_reason,
        stage=str(stage.stage),
        attempt=stage.attempt,
        pod=pod.name,
        node=pod.node,
        exit_code=code,
        message="\n".join(said)[:4096],
        advice=_OVERUSE_ADVICE if pod.is_overusing else _REJECTED_ADVICE if pod.is_rejected else _GOES_ON,
    )
    kind = FailureClass.RETRYABLE if pod.is_overusing else FailureClass.DISRUPTION
    return Failure(kind, code, status, never_ran=pod.is_rejected)


def _first_of(culprits: list[ObservedPod]) -> ObservedPod:
    """The pod that ended first; where that is one with an internal error, one that names its cause just after it.

    A worker that has lost its peer ends with an internal error, and its end may be told before the peer's own.
    """
    ordered = sorted(culprits, key=lambda pod: (pod.finished_at, pod.index))
    first = ordered[0]
    if first.exit_code != ExitCode.INTERNAL_ERROR:
        return first
    latest = datetime.fromisoformat(first.finished_at) + _SETTLE
    causes = (pod for pod in ordered if pod.exit_code != ExitCode.INTERNAL_ERROR)
    return next((pod for pod in causes if datetime.fromisoformat(pod.finished_at) <= latest), first)


def _deleted(stage: ObservedStage) -> str:
    """A pod that should be there and is not, by its host name: one that ended by itself is kept, with its end."""
    present = {pod.index for pod in stage.pods}
    return next((f"{stage.job_name}-{index}" for index in range(stage.expected_pods) if index not in present), "")


def _class_of(pod: ObservedPod) -> FailureClass:
    is_free = (pod.disrupted or pod.kubelet_reason) and not pod.is_overusing
    return FailureClass.DISRUPTION if is_free else failure_class(pod.exit_code or 0)


def _without_a_trace(stage: ObservedStage, noticed: FailureStatus | None) -> Failure:
    """The Job failed and no pod says why: its pods were removed, so the training is not to blame."""
    if noticed is not None and (noticed.stage, noticed.attempt) == (stage.stage, stage.attempt):
        return Failure(FailureClass.DISRUPTION, 0, noticed)
    status = FailureStatus(
        failure_class="Lost",
        stage=str(stage.stage),
        attempt=stage.attempt,
        message=f"{stage.job_name} failed and its pods are gone",
        advice=_GOES_ON,
    )
    return Failure(FailureClass.DISRUPTION, 0, status)


def _lost(stage: ObservedStage) -> Failure:
    """A node that does not answer: nobody can tell how its pod ended, or whether it has."""
    pod = next(pod for pod in stage.pods if pod.due_at and not pod.ended)
    status = FailureStatus(
        failure_class="NodeLost",
        stage=str(stage.stage),
        attempt=stage.attempt,
        pod=pod.name,
        node=pod.node,
        message=f"{pod.name} should have ended by {pod.due_at}, and node {pod.node or '(unknown)'} does not tell of it",
        advice="Look after the node. The next attempt goes on elsewhere; what still runs there cannot write any more.",
    )
    return Failure(FailureClass.DISRUPTION, 0, status)


def _status(stage: ObservedStage, pod: ObservedPod, code: int) -> FailureStatus:
    message = pod.message
    if message is not None:
        lines = [message.error, *message.last_lines]
    else:
        lines = [f"{pod.name} {_ended(pod, code)}", *_said(pod.raw_message)]
    name = name_of(ExitCode.OUT_OF_MEMORY if pod.out_of_memory else code)
    return FailureStatus(
        failure_class="Disrupted" if pod.disrupted else name,
        stage=str(stage.stage),
        attempt=stage.attempt,
        rank=message.rank if message else None,
        pod=pod.name,
        node=pod.node,
        exit_code=code,
        message="\n".join(lines).strip()[:4096],
        advice=((message.advice if message else "") or _advice(stage.stage, pod, code))[:1024],
    )


def _ended(pod: ObservedPod, code: int) -> str:
    if pod.out_of_memory:
        return "was ended by the kernel because its memory was used up"
    return f"ended with status {code}"


def _said(log_tail: str) -> Iterator[str]:
    """The last lines of a log as people read them; the first of a tail may be the end of a longer one."""
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
