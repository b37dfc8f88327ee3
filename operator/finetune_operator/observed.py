"""A frozen snapshot of a job's children, from their manifests. Pure.

Only fields of Kubernetes are read, so that the local cluster and Kubernetes are handled by the same code.
"""

from collections.abc import Collection, Iterable, Iterator
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
_HELD_AFTER = timedelta(seconds=30)
"""Time after the end of the trainer until a pod whose other containers are running is considered held by them. A
sidecar may have to write what it has buffered."""


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
    held_by: tuple[str, ...] = ()
    """Names of the containers that are running although the trainer has ended. Nothing stops injected containers that
    are no init containers."""
    failed_containers: tuple[str, ...] = ()
    """Other containers than the trainer that ended with an error, such as `container istio-proxy ended with status 1`.
    Kubernetes fails the pod then, although its trainer may have succeeded."""

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

    @property
    def has_trainer(self) -> bool:
        """Whether its trainer may be running."""
        return not self.ended and self.exit_code is None


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
    """Whether its Job is complete, or would be without the containers that are not the trainer."""
    failed: bool
    """Whether its Job has failed, or would have without the containers that are not the trainer."""
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
    has_gang: bool = False
    """Whether its pods are in a PodGroup with its name, so that the scheduler places them on nodes together."""
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
    held: bool = False
    """Whether other containers keep its pods running after its trainers have ended. The Job is deleted then."""
    recorded: bool = False
    """Whether its outcome is in status."""

    @property
    def active(self) -> bool:
        """Whether its trainers may be running, and it has not been given up."""
        return not (self.succeeded or self.failed or self.lost or self.recorded)

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
    def is_stopping(self) -> bool:
        """Whether it has ended, but trainers of its Job, which is deleted, may be running."""
        has_ended = self.held or (self.recorded and not self.succeeded and not self.failed)
        return has_ended and not self.lost and any(pod.has_trainer for pod in self.pods)

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
        cls,
        owner_uid: str,
        jobs: Iterable[Manifest],
        pods: Iterable[Manifest],
        *,
        now: datetime | None = None,
        recorded: Collection[str] = (),
    ) -> "Observed":
        """Build the snapshot. Jobs of another owner, such as a deleted job of the same name, are ignored.

        Without `now` no attempt is considered lost or held. `recorded` are the names of the Jobs whose outcome is in
        status.
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
        found = [_attempt(job, pods_by_job.get(job["metadata"]["uid"], []), now, recorded) for job in ours]
        found.sort(key=lambda child: child.order)
        # After the failure of one trainer, the others run until the Job is deleted.
        orphans |= {child.job_name for child in found if child.is_stopping}
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

    def unfinished(self, run: int) -> tuple[ObservedAttempt, ...]:
        """Children whose Jobs must be deleted, because they do not end: they were given up, or are held by other
        containers, and their outcome is in status or they are of an earlier run than `run`, the one in status."""
        found = (child for child in self.attempts if child.lost or (child.held and (child.recorded or child.run < run)))
        return tuple(child for child in found if not child.deleting)


def is_overdue(pod: ObservedPod, now: datetime) -> bool:
    """Whether a pod has not ended although its grace period expired at least 30 s ago."""
    return bool(pod.due_at) and not pod.ended and now >= datetime.fromisoformat(pod.due_at) + _LOST_AFTER


def has_ended(job: Manifest) -> bool:
    """Whether the Job has a terminal condition."""
    return bool(_terminal(job))


def _terminal(job: Manifest) -> dict[str, str]:
    """Return terminal condition -> time when it was set."""
    return {kind: since for kind, since in true_conditions(job).items() if kind in {"Complete", "Failed"}}


def _is_held(job: Manifest, pods: list[ObservedPod], now: datetime) -> bool:
    """Whether its trainers ended at least 30 s ago, but not its pods. One failed trainer ends the attempt."""
    if "deletionTimestamp" in job["metadata"]:
        return False
    held = [pod for pod in pods if pod.held_by and not pod.due_at]
    held = [pod for pod in held if now >= datetime.fromisoformat(pod.finished_at) + _HELD_AFTER]
    return bool(held) and (_has_succeeded(job, pods) or any(pod.exit_code for pod in held))


def _has_succeeded(job: Manifest, pods: list[ObservedPod]) -> bool:
    """Whether all its trainers have succeeded."""
    return len(pods) == job.get("spec", {}).get("parallelism", 1) and all(pod.exit_code == 0 for pod in pods)


def _attempt(
    job: Manifest, pods: list[ObservedPod], now: datetime | None, recorded: Collection[str]
) -> ObservedAttempt:
    metadata, spec = job["metadata"], job.get("spec", {})
    terminal = _terminal(job)
    held = not terminal and now is not None and _is_held(job, pods, now)
    # A Job also fails if only another container does. Its other pods are deleted as soon as it begins to fail.
    failing = "FailureTarget" in true_conditions(job)
    succeeded = "Complete" in terminal or ((held or failing or "Failed" in terminal) and _has_succeeded(job, pods))
    labels, annotations = metadata["labels"], metadata.get("annotations", {})
    return ObservedAttempt(
        stage=Stage(labels[constants.LABEL_STAGE]),
        run=int(labels[constants.LABEL_RUN]),
        attempt=int(labels[constants.LABEL_ATTEMPT]),
        job_name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=metadata.get("creationTimestamp", ""),
        ended_at=max(terminal.values() or (pod.finished_at for pod in pods if held or succeeded), default=""),
        succeeded=succeeded,
        failed=("Failed" in terminal or held) and not succeeded,
        deleting="deletionTimestamp" in metadata,
        pods=tuple(sorted(pods, key=lambda pod: pod.index)),
        failing=failing,
        expected_pods=spec.get("parallelism", 1),
        grace_seconds=spec.get("template", {}).get("spec", {}).get("terminationGracePeriodSeconds", 30),
        run_hash=annotations.get(constants.ANNOTATION_RUN_SPEC_HASH, ""),
        spec_hash=annotations.get(constants.ANNOTATION_ATTEMPT_SPEC_HASH, ""),
        plan=_plan(annotations.get(constants.ANNOTATION_ATTEMPT_PLAN)),
        gpus=int(annotations.get(constants.ANNOTATION_GPUS, 0)),
        evaluation_hash=annotations.get(constants.ANNOTATION_EVALUATION_SPEC_HASH, ""),
        queue=labels.get(constants.LABEL_QUEUE, ""),
        has_gang=_pod_group(job) == metadata["name"],
        suspended=spec.get("suspend", False),
        started_at=job.get("status", {}).get("startTime", ""),
        lost=not terminal and now is not None and any(is_overdue(pod, now) for pod in pods),
        held=held,
        recorded=metadata["name"] in recorded,
    )


def _pod_group(job: Manifest) -> str:
    template = job.get("spec", {}).get("template", {}).get("spec", {})
    return str(template.get("schedulingGroup", {}).get("podGroupName", ""))


def _plan(text: str | None) -> AttemptPlan | None:
    try:
        return AttemptPlan.model_validate_json(text or "")
    except ValidationError:
        return None


def _pod(manifest: Manifest) -> ObservedPod:
    metadata, status = manifest["metadata"], manifest.get("status", {})
    containers = status.get("containerStatuses", [])
    trainer: Manifest = next((entry for entry in containers if entry["name"] == constants.TRAINER_CONTAINER), {})
    terminated = trainer.get("state", {}).get("terminated", {})
    text = terminated.get("message", "")
    running = (entry["name"] for entry in containers if "running" in entry.get("state", {}))
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
        waiting=_waiting(status),
        created_at=metadata.get("creationTimestamp", ""),
        due_at=metadata.get("deletionTimestamp", ""),
        kubelet_reason=status.get("reason", "") if status.get("phase") == "Failed" else "",
        kubelet_message=status.get("message", "") if status.get("phase") == "Failed" else "",
        held_by=tuple(running) if terminated and status.get("phase") == "Running" else (),
        failed_containers=tuple(_failed_containers(manifest)),
    )


def _failed_containers(manifest: Manifest) -> Iterator[str]:
    """Yield which containers except the trainer ended with an error.

    That of a sidecar, an init container that runs beside the trainer, has no effect on its pod.
    """
    spec, status = manifest.get("spec", {}), manifest.get("status", {})
    ignored = {entry["name"] for entry in spec.get("initContainers", []) if entry.get("restartPolicy") == "Always"}
    ignored.add(constants.TRAINER_CONTAINER)
    for kind, field in (("init container", "initContainerStatuses"), ("container", "containerStatuses")):
        for entry in status.get(field, []):
            code = entry.get("state", {}).get("terminated", {}).get("exitCode")
            if code and entry["name"] not in ignored:
                yield f"{kind} {entry['name']} ended with status {code}"


ORDINARY_WAITS = frozenset({"ContainerCreating", "PodInitializing", ""})
"""Reasons of the kubelet during a normal start, which it also reports while it waits for a missing volume."""


def _waiting(status: Manifest) -> str:
    """Return why a pod is not running: the message of the scheduler, or that of the kubelet for a container.

    An injected container that cannot start, or an init container that does not end, is named.
    """
    for entry in status.get("conditions", []):
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return f"{entry.get('reason', 'Unscheduled')}: {entry.get('message', '')}".rstrip(": ")
    containers = status.get("containerStatuses", [])
    own = next((_wait_of(entry) for entry in containers if entry["name"] == constants.TRAINER_CONTAINER), "")
    if own not in ORDINARY_WAITS:
        return own
    for entry in (*status.get("initContainerStatuses", []), *containers):
        reason = _wait_of(entry)
        if reason not in ORDINARY_WAITS:
            return f"container {entry['name']}: {reason}"
        if entry in status.get("initContainerStatuses", []) and _is_initializing(entry):
            return f"init container {entry['name']} is running"
    return own


def _wait_of(container: Manifest) -> str:
    waiting = container.get("state", {}).get("waiting", {})
    return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")


def _is_initializing(container: Manifest) -> bool:
    """Whether an init container is running and the other containers wait for its end. A sidecar has started then."""
    return "running" in container.get("state", {}) and not container.get("started", False)
