"""A frozen snapshot of a job's children, from their manifests. Pure.

Only fields of Kubernetes are read, so that the local cluster and Kubernetes are handled by the same code.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.progress import TerminationMessage
from finetune_api.stages import STAGES, stage_order
from finetune_api.v1alpha1 import AttemptPlan

from .manifests import Manifest, controller_uid, true_conditions

_LOST_AFTER = timedelta(seconds=30)
"""Time after the grace period until a pod is considered lost. A working kubelet reports the end within seconds."""


EVICTED = "Evicted"
"""Reason of pods that were evicted by a kubelet. Evictions through the API, such as drains, are `Disrupted`."""
_OVERUSE_MESSAGES = (
    "exceeds the limit",  # sizeLimit of an emptyDir
    "exceeds the total limit of containers",  # local storage of the pod
    "exceeded its local ephemeral storage limit",  # of a container
    "larger consumption of",  # node pressure, and the pod uses more than it requested
)
"""Message texts of a kubelet for pods that were evicted because of their own usage (pkg/kubelet/eviction/helpers.go and
eviction_manager.go of Kubernetes). There is no field for it."""


@dataclass(frozen=True)
class ObservedPod:
    """One pod of a stage."""

    name: str
    index: int
    phase: str
    exit_code: int | None
    """None while it is running, or if it is unknown."""
    finished_at: str
    """RFC 3339; empty while it is running."""
    message: TerminationMessage | None
    raw_message: str
    """The termination message as text, which may be the end of the log."""
    disrupted: bool
    """Whether it was evicted, preempted or lost, which the training did not cause."""
    out_of_memory: bool = False
    """Whether the kernel killed processes of the pod because it ran out of memory."""
    node: str = ""
    """Node of the pod; empty before it is scheduled."""
    waiting: str = ""
    """Why it is not running yet, as reported by the scheduler or the kubelet; empty when it is running."""
    created_at: str = ""
    due_at: str = ""
    """Deletion timestamp: time of the deletion request plus grace period; empty if it is not being deleted."""
    kubelet_reason: str = ""
    """Reason given by the kubelet for failing the pod, such as `Evicted`, `UnexpectedAdmissionError`, `OutOfcpu`; empty
    if it did not fail the pod."""
    kubelet_message: str = ""
    """Message for `kubelet_reason`."""

    @property
    def is_rejected(self) -> bool:
        """Whether the kubelet rejected the pod, so that none of its containers ever ran."""
        return self.phase == "Failed" and bool(self.kubelet_reason) and self.exit_code is None and not self.is_evicted

    @property
    def is_evicted(self) -> bool:
        """Whether the kubelet evicted the pod, because of node pressure or a limit of the pod."""
        return self.kubelet_reason == EVICTED

    @property
    def is_overusing(self) -> bool:
        """Whether the pod was evicted because its use of disk or memory exceeded its limits or requests."""
        return self.is_evicted and any(words in self.kubelet_message for words in _OVERUSE_MESSAGES)

    @property
    def has_run(self) -> bool:
        """Whether a process of the trainer is running in it, or was."""
        return self.phase == "Running" or self.exit_code is not None

    @property
    def ended(self) -> bool:
        """Whether no process of the pod can be running."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True)
class ObservedAttempt:
    """The Job of one attempt at a stage, with its pods."""

    stage: Stage
    run: int
    attempt: int
    job_name: str
    uid: str
    created_at: str
    ended_at: str
    """Time when the terminal condition of the Job was set; empty while it is running."""
    succeeded: bool
    failed: bool
    deleting: bool
    pods: tuple[ObservedPod, ...]
    failing: bool = False
    """Whether the Job controller terminates its pods because one of them failed or was deleted."""
    expected_pods: int = 1
    grace_seconds: int = 30
    """Grace period of its pods."""
    run_hash: str = ""
    """Hash of the spec fields that determine the result; empty if it was created by a version without it."""
    spec_hash: str = ""
    """Hash of the spec fields that it was started with."""
    plan: AttemptPlan | None = None
    """Plan of a training attempt; None: created by a version without plans."""
    gpus: int = 0
    """GPUs of all its pods."""
    evaluation_hash: str = ""
    """Hash of the spec fields that determine evaluation and exported formats."""
    queue: str = ""
    """Queue of its Job; empty: none."""
    suspended: bool = False
    """Whether `spec.suspend` of its Job is set: it was not admitted yet, or it was evicted, so that the Job controller
    deletes its pods, which save a checkpoint."""
    started_at: str = ""
    """When its Job was started, or admitted by its queue; empty: not yet, or unknown."""
    lost: bool = False
    """Whether a pod has not ended long after its deletion timestamp, because its node does not respond.

    Kubernetes keeps the Job and the pod until the node responds or is deleted. The attempt is given up; processes that
    may still be running are fenced by the claim of the next attempt.
    """

    @property
    def active(self) -> bool:
        """Whether its pods may be running and it has not been given up."""
        return not (self.succeeded or self.failed or self.lost)

    @property
    def is_queued(self) -> bool:
        """Whether it waits for its admission and no pod is running."""
        return self.active and self.suspended and not self.deleting and all(pod.ended for pod in self.pods)

    @property
    def expected_since(self) -> str:
        """When its pods were expected first: the creation of its Job, or the admission by its queue."""
        return self.started_at or self.created_at

    @property
    def ending(self) -> bool:
        """Whether some pods have ended or are being deleted, and others may still be running."""
        return self.active and (self.deleting or any(pod.ended or pod.due_at for pod in self.pods))

    @property
    def order(self) -> tuple[int, int, int]:
        """Later attempts at later stages of later runs compare greater."""
        return (self.run, stage_order(self.stage), self.attempt)


@dataclass(frozen=True)
class Observed:
    """All children of a job, oldest first."""

    attempts: tuple[ObservedAttempt, ...]
    """Jobs of attempts."""
    orphans: tuple[str, ...] = ()
    """Names of deleted Jobs with running pods, which may be saving a checkpoint."""
    polls: tuple[ObservedAttempt, ...] = ()
    """Jobs of polls, which are no attempts of a run."""

    @classmethod
    def from_manifests(
        cls, owner_uid: str, jobs: Iterable[Manifest], pods: Iterable[Manifest], *, now: datetime | None = None
    ) -> "Observed":
        """Build the snapshot. Jobs of another owner, such as a deleted job of the same name, are ignored.

        Without `now` no attempt is considered lost.
        """
        jobs = list(jobs)
        present = {job["metadata"]["uid"] for job in jobs}
        # By UID, because pods of a deleted job may still be terminating when its successor has a Job of the same name.
        pods_by_job: dict[str, list[ObservedPod]] = {}
        orphans: set[str] = set()
        for manifest in pods:
            owner, pod = controller_uid(manifest), _pod(manifest)
            if owner in present:
                pods_by_job.setdefault(owner, []).append(pod)
            elif not pod.ended and not (now and is_overdue(pod, now)):
                orphans.add(manifest["metadata"]["labels"][constants.LABEL_JOB_NAME])
        ours = (job for job in jobs if controller_uid(job) == owner_uid)
        found = [_attempt(job, pods_by_job.get(job["metadata"]["uid"], []), now) for job in ours]
        found.sort(key=lambda child: child.order)
        attempts = tuple(child for child in found if STAGES[child.stage].is_part_of_run)
        polls = tuple(child for child in found if child.stage is Stage.POLL)
        return cls(attempts, tuple(sorted(orphans)), polls)

    def of_run(self, run: int) -> tuple[ObservedAttempt, ...]:
        """The children of one run, oldest first."""
        return tuple(child for child in self.attempts if child.run == run)

    @property
    def active(self) -> tuple[ObservedAttempt, ...]:
        """Children that may be running."""
        return tuple(child for child in self.attempts if child.active)

    @property
    def is_queued(self) -> bool:
        """Whether the newest child waits in a queue, and no older one is running. A Job without a queue that something
        else has suspended does not count: nothing limits how long it stays so."""
        return bool(self.active) and all(child.is_queued and child.queue for child in self.active)

    @property
    def lost(self) -> tuple[ObservedAttempt, ...]:
        """Children that were given up and are not being deleted."""
        return tuple(child for child in self.attempts if child.lost and not child.deleting)


def is_overdue(pod: ObservedPod, now: datetime) -> bool:
    """Whether a pod has not ended although its grace period expired at least 30 s ago."""
    return bool(pod.due_at) and not pod.ended and now >= datetime.fromisoformat(pod.due_at) + _LOST_AFTER


def has_ended(job: Manifest) -> bool:
    """Whether the Job has a terminal condition."""
    return bool(_terminal(job))


def _terminal(job: Manifest) -> dict[str, str]:
    """Return terminal condition -> time when it was set."""
    return {kind: since for kind, since in true_conditions(job).items() if kind in {"Complete", "Failed"}}


def _attempt(job: Manifest, pods: list[ObservedPod], now: datetime | None) -> ObservedAttempt:
    metadata, spec = job["metadata"], job.get("spec", {})
    terminal = _terminal(job)
    labels, annotations = metadata["labels"], metadata.get("annotations", {})
    return ObservedAttempt(
        stage=Stage(labels[constants.LABEL_STAGE]),
        run=int(labels[constants.LABEL_RUN]),
        attempt=int(labels[constants.LABEL_ATTEMPT]),
        job_name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp", ""),
        ended_at=max(terminal.values(), default=""),
        succeeded="Complete" in terminal,
        failed="Failed" in terminal,
        deleting="deletionTimestamp" in metadata,
        pods=tuple(sorted(pods, key=lambda pod: pod.index)),
        failing="FailureTarget" in true_conditions(job),
        expected_pods=spec.get("parallelism", 1),
        grace_seconds=spec.get("template", {}).get("spec", {}).get("terminationGracePeriodSeconds", 30),
        run_hash=annotations.get(constants.ANNOTATION_RUN_SPEC_HASH, ""),
        spec_hash=annotations.get(constants.ANNOTATION_ATTEMPT_SPEC_HASH, ""),
        plan=_plan(annotations.get(constants.ANNOTATION_ATTEMPT_PLAN)),
        gpus=int(annotations.get(constants.ANNOTATION_GPUS, 0)),
        evaluation_hash=annotations.get(constants.ANNOTATION_EVALUATION_SPEC_HASH, ""),
        queue=labels.get(constants.LABEL_QUEUE, ""),
        suspended=spec.get("suspend", False),
        started_at=job.get("status", {}).get("startTime", ""),
        lost=not terminal and now is not None and any(is_overdue(pod, now) for pod in pods),
    )


def _plan(text: str | None) -> AttemptPlan | None:
    try:
        return AttemptPlan.model_validate_json(text or "")
    except ValidationError:
        return None


def _pod(manifest: Manifest) -> ObservedPod:
    metadata, status = manifest["metadata"], manifest.get("status", {})
    containers = status.get("containerStatuses", [])
    trainer: Manifest = next((entry for entry in containers if entry["name"] == constants.TRAINER_CONTAINER), {})
    state = trainer.get("state", {})
    terminated = state.get("terminated", {})
    text = terminated.get("message", "")
    conditions = status.get("conditions", [])
    return ObservedPod(
        name=metadata["name"],
        index=int(metadata.get("annotations", {}).get(constants.COMPLETION_INDEX, 0)),
        phase=status.get("phase", "Pending"),
        exit_code=terminated.get("exitCode"),
        finished_at=terminated.get("finishedAt", ""),
        message=TerminationMessage.decode(text) if text else None,
        raw_message=text,
        disrupted="DisruptionTarget" in true_conditions(manifest),
        out_of_memory=terminated.get("reason") == "OOMKilled",
        node=manifest.get("spec", {}).get("nodeName", ""),
        waiting=_waiting(state, conditions),
        created_at=metadata.get("creationTimestamp", ""),
        due_at=metadata.get("deletionTimestamp", ""),
        kubelet_reason=status.get("reason", "") if status.get("phase") == "Failed" else "",
        kubelet_message=status.get("message", "") if status.get("phase") == "Failed" else "",
    )


def _waiting(state: Manifest, conditions: list[Manifest]) -> str:
    """Return why a pod is not running: the message of the scheduler, or that of the kubelet for its container."""
    for entry in conditions:
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return f"{entry.get('reason', 'Unscheduled')}: {entry.get('message', '')}".rstrip(": ")
    waiting = state.get("waiting", {})
    return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
