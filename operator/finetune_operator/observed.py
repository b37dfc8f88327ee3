"""A frozen snapshot of a job's children, from their manifests. Pure.

Read from Kubernetes' own fields alone, so that the local adapter and a real cluster are judged by the same eyes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.progress import TerminationMessage
from finetune_api.stages import stage_order
from finetune_api.v1alpha1 import AttemptPlan

from .manifests import Manifest, controller_uid, true_conditions

_LOST_AFTER = timedelta(seconds=30)
"""A kubelet that lives ends a pod within its grace and tells so within seconds."""


EVICTED = "Evicted"
"""The reason of pods that a kubelet has evicted. Those evicted through the API, as by a drain, are `Disrupted`."""
_OWN_USE = (
    "exceeds the limit",  # an emptyDir's sizeLimit
    "exceeds the total limit of containers",  # local storage of the pod
    "exceeded its local ephemeral storage limit",  # of a container
    "larger consumption of",  # low node, and the pod uses more than it has requested
)
"""Words in which a kubelet tells that a pod was evicted for what it used itself (pkg/kubelet/eviction/helpers.go and
eviction_manager.go of Kubernetes). There is no field for it."""


@dataclass(frozen=True)
class ObservedPod:
    """One pod of a stage."""

    name: str
    index: int
    phase: str
    exit_code: int | None
    """None while it runs, or where nothing is known of its end."""
    finished_at: str
    """RFC 3339; empty while it runs."""
    message: TerminationMessage | None
    raw_message: str
    """The termination message where it is not one of ours (a log tail from the kubelet)."""
    disrupted: bool
    """Evicted, preempted or lost: the pod's end is not the training's fault."""
    out_of_memory: bool = False
    """The kernel has ended a process of it, or all of them, because its memory was used up."""
    node: str = ""
    """Where it runs; empty while it is not placed."""
    waiting: str = ""
    """Why it does not run yet, in the words of the scheduler or the kubelet; empty once it does."""
    created_at: str = ""
    due_at: str = ""
    """When it has to be gone at the latest, where it is being deleted: the moment of the request and its grace."""
    kubelet_reason: str = ""
    """Why the kubelet has failed the pod as a whole: `Evicted`, `UnexpectedAdmissionError`, `OutOfcpu`. Empty: it has
    not."""
    kubelet_message: str = ""
    """The same as a sentence."""

    @property
    def is_rejected(self) -> bool:
        """The kubelet did not admit the pod: no container of it has ever run."""
        return self.phase == "Failed" and bool(self.kubelet_reason) and self.exit_code is None and not self.is_evicted

    @property
    def is_evicted(self) -> bool:
        """The kubelet has ended the pod for what its node lacked, or for a limit of its own."""
        return self.kubelet_reason == EVICTED

    @property
    def is_overusing(self) -> bool:
        """The pod was evicted for its own use of disk or memory, beyond its limits or its requests."""
        return self.is_evicted and any(words in self.kubelet_message for words in _OWN_USE)

    @property
    def ended(self) -> bool:
        """True once no process of the pod can run any more."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True)
class ObservedStage:
    """The Job of one attempt at one stage, with its pods."""

    stage: Stage
    run: int
    attempt: int
    job_name: str
    uid: str
    created_at: str
    ended_at: str
    """When the Job's terminal condition was set; empty while it runs."""
    succeeded: bool
    failed: bool
    deleting: bool
    pods: tuple[ObservedPod, ...]
    failing: bool = False
    """The Job controller is ending its pods because one of them has failed or was deleted."""
    expected_pods: int = 1
    grace_seconds: int = 30
    """What its pods get after SIGTERM."""
    run_hash: str = ""
    """Of the part of the spec that its run is about; empty: written by an operator that did not tell."""
    spec_hash: str = ""
    """Of the part of the spec that it was started with."""
    plan: AttemptPlan | None = None
    """What a training was started with; None: written by an operator that did not record it."""
    evaluation_hash: str = ""
    """Of the part of the spec that decides the evaluation and the exported formats."""
    lost: bool = False
    """A pod of it should have been gone for long and is not: its node does not answer, and may never again.

    Kubernetes then keeps Job and pod for ever, forced deletion included. The attempt is given up as it is; what still
    runs of it is fenced by the claim of the next one.
    """

    @property
    def active(self) -> bool:
        """True while pods of it may run and it has not been given up."""
        return not (self.succeeded or self.failed or self.lost)

    @property
    def ending(self) -> bool:
        """True while pods of it have ended, or have been told to, and others may still run."""
        return self.active and (self.deleting or any(pod.ended or pod.due_at for pod in self.pods))

    @property
    def order(self) -> tuple[int, int, int]:
        """Later attempts at later stages of later runs compare greater."""
        return (self.run, stage_order(self.stage), self.attempt)


@dataclass(frozen=True)
class Observed:
    """All children of a job, oldest first."""

    stages: tuple[ObservedStage, ...]
    orphans: tuple[str, ...] = ()
    """Names of Jobs that are gone while pods of them go on: somebody has deleted them, and the pods still save."""

    @classmethod
    def from_manifests(
        cls, owner_uid: str, jobs: Iterable[Manifest], pods: Iterable[Manifest], *, now: datetime | None = None
    ) -> "Observed":
        """Jobs that another object owns (a deleted job of the same name) are not ours and are left out.

        Without `now` no stage is taken for lost.
        """
        jobs = list(jobs)
        present = {job["metadata"]["uid"] for job in jobs}
        # By uid: pods of a deleted job may still be ending while a Job of the same name is there for its successor.
        pods_by_job: dict[str, list[ObservedPod]] = {}
        orphans: set[str] = set()
        for manifest in pods:
            owner, pod = controller_uid(manifest), _pod(manifest)
            if owner in present:
                pods_by_job.setdefault(owner, []).append(pod)
            elif not pod.ended and not (now and is_overdue(pod, now)):
                orphans.add(manifest["metadata"]["labels"][constants.LABEL_JOB_NAME])
        ours = (job for job in jobs if controller_uid(job) == owner_uid)
        stages = (_stage(job, pods_by_job.get(job["metadata"]["uid"], []), now) for job in ours)
        return cls(tuple(sorted(stages, key=lambda stage: stage.order)), tuple(sorted(orphans)))

    def of_run(self, run: int) -> tuple[ObservedStage, ...]:
        """The children of one run, oldest first."""
        return tuple(stage for stage in self.stages if stage.run == run)

    @property
    def active(self) -> tuple[ObservedStage, ...]:
        """Children that may still run."""
        return tuple(stage for stage in self.stages if stage.active)

    @property
    def lost(self) -> tuple[ObservedStage, ...]:
        """Children that were given up and are not being deleted yet."""
        return tuple(stage for stage in self.stages if stage.lost and not stage.deleting)


def is_overdue(pod: ObservedPod, now: datetime) -> bool:
    """The pod is being deleted, its grace is long over, and nobody has told of its end."""
    return bool(pod.due_at) and not pod.ended and now >= datetime.fromisoformat(pod.due_at) + _LOST_AFTER


def has_ended(job: Manifest) -> bool:
    """The Job has a terminal condition."""
    return bool(_terminal(job))


def _terminal(job: Manifest) -> dict[str, str]:
    """Terminal condition -> when it was set."""
    return {kind: since for kind, since in true_conditions(job).items() if kind in {"Complete", "Failed"}}


def _stage(job: Manifest, pods: list[ObservedPod], now: datetime | None) -> ObservedStage:
    metadata, spec = job["metadata"], job.get("spec", {})
    terminal = _terminal(job)
    labels, annotations = metadata["labels"], metadata.get("annotations", {})
    return ObservedStage(
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
        evaluation_hash=annotations.get(constants.ANNOTATION_EVALUATION_SPEC_HASH, ""),
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
    """What the scheduler says of a pod without a node, else what the kubelet says of its container."""
    for entry in conditions:
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return f"{entry.get('reason', 'Unscheduled')}: {entry.get('message', '')}".rstrip(": ")
    waiting = state.get("waiting", {})
    return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
