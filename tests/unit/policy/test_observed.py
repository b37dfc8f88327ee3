"""What the operator reads from manifests: owners of pods, and how they ended."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api import constants
from finetune_api.exit_codes import RetryClass
from finetune_operator.observed import Observed
from finetune_operator.policy import failure

LABELS = {
    constants.LABEL_JOB: "example",
    constants.LABEL_RUN: "1",
    constants.LABEL_STAGE: "train",
    constants.LABEL_ATTEMPT: "1",
}
NAME = "example-r1-train-a1"


def owned_by(uid: str) -> list[dict[str, Any]]:
    return [{"kind": "any", "name": "any", "uid": uid, "controller": True}]


def make_job(uid: str, owner: str, stage: str = "train", **status: Any) -> dict[str, Any]:
    labels = LABELS | {constants.LABEL_STAGE: stage}
    metadata = {"name": NAME, "uid": uid, "labels": labels, "ownerReferences": owned_by(owner)}
    return {"metadata": metadata, "spec": {"parallelism": 2}, "status": status}


def make_pod(index: int, owner: str, **state: Any) -> dict[str, Any]:
    """A pod of the Job with that UID, with the state of its container."""
    metadata = {
        "name": f"{NAME}-{index}-{owner}",
        "labels": {**LABELS, constants.LABEL_JOB_NAME: NAME},
        "annotations": {constants.COMPLETION_INDEX: str(index)},
        "ownerReferences": owned_by(owner),
    }
    container = {"name": constants.TRAINER_CONTAINER, "state": state}
    return {"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [container]}}


def test_pods_of_a_deleted_job_are_not_those_of_its_successor_of_the_same_name() -> None:
    jobs = [make_job("new-train", owner="new")]
    pods = [make_pod(index, owner) for owner in ("old-train", "new-train") for index in (0, 1)]
    (stage,) = Observed.from_manifests("new", jobs, pods).attempts
    assert [pod.name for pod in stage.pods] == [f"{NAME}-0-new-train", f"{NAME}-1-new-train"]


def test_a_pod_that_the_kernel_killed_for_memory_is_recognized_without_a_message() -> None:
    jobs = [make_job("train", owner="u", conditions=[{"type": "Failed", "status": "True"}])]
    pods = [make_pod(1, "train", terminated={"exitCode": 137, "reason": "OOMKilled"})]
    (stage,) = Observed.from_manifests("u", jobs, pods).attempts
    judged = failure.classify_failure(stage)
    assert (judged.status.failure_class, judged.exit_code) == ("OutOfMemory", 137)
    assert judged.status.message.startswith(f"{NAME}-1-train was killed by the kernel because it ran out of memory")
    assert "training.microBatchSize" in judged.status.advice


SIDECAR = {"name": "istio-proxy", "state": {"running": {}}}
ENDED_AT = "2026-01-01T12:00:00Z"
OVER = {"terminated": {"exitCode": 0, "finishedAt": ENDED_AT}}
FAILED = {"terminated": {"exitCode": 70, "finishedAt": ENDED_AT}}
RUNNING: dict[str, Any] = {"running": {}}


def observed_with_sidecars(*states: dict[str, Any], seconds: float = 30, recorded: bool = False) -> Observed:
    """Pods whose sidecars are running, some seconds after the end of the first trainer."""
    pods = [make_pod(index, "train", **state) for index, state in enumerate(states)]
    for pod in pods:
        pod["status"]["containerStatuses"].append(SIDECAR)
    now = datetime.fromisoformat(ENDED_AT) + timedelta(seconds=seconds)
    names = [NAME] if recorded else []
    return Observed.from_manifests("u", [make_job("train", owner="u")], pods, now=now, recorded=names)


@pytest.mark.parametrize(
    ("states", "seconds", "expected"),
    [
        pytest.param((OVER, OVER), 30, "succeeded", id="all have ended"),
        pytest.param((OVER, OVER), 29, "active", id="the sidecars may still write"),
        pytest.param((OVER, RUNNING), 3600, "active", id="another trainer is running"),
        pytest.param((OVER,), 3600, "active", id="a pod does not exist yet"),
        pytest.param((FAILED, RUNNING), 30, "failed", id="one has failed"),
        pytest.param((FAILED, FAILED), 30, "failed", id="all have failed"),
    ],
)
def test_an_attempt_ends_with_its_trainers_although_sidecars_are_running(
    states: tuple[dict[str, Any], ...], seconds: float, expected: str
) -> None:
    (child,) = observed_with_sidecars(*states, seconds=seconds).attempts
    assert [name for name in ("succeeded", "failed", "active") if getattr(child, name)] == [expected]
    assert child.held is (expected != "active")
    assert child.ended_at == ("" if expected == "active" else ENDED_AT)


def test_a_job_that_sidecars_hold_is_deleted_when_its_outcome_is_recorded() -> None:
    assert observed_with_sidecars(OVER, OVER).unfinished(run=1) == ()
    observed = observed_with_sidecars(OVER, OVER, recorded=True)
    assert (observed.unfinished(run=1), observed.orphans) == (observed.attempts, ())


def test_a_job_of_an_earlier_run_that_sidecars_hold_is_deleted() -> None:
    observed = observed_with_sidecars(OVER, OVER)
    assert observed.unfinished(run=2) == observed.attempts
    assert observed_with_sidecars(OVER, RUNNING, seconds=3600).unfinished(run=2) == (), "its run is stopped first"


def test_the_next_attempt_waits_for_the_other_trainers_of_one_that_sidecars_hold() -> None:
    assert observed_with_sidecars(FAILED, RUNNING).orphans == (NAME,)
    assert observed_with_sidecars(FAILED, FAILED).orphans == ()


STOPPED = {"terminated": {"exitCode": 75, "finishedAt": ENDED_AT}}
NOT_STARTED = {"waiting": {"reason": "PodInitializing"}}
ERROR = {"terminated": {"exitCode": 3}}


def failed_job(
    *trainers: dict[str, Any], init: dict[str, Any] | None = None, condition: str = "Failed", **first: Any
) -> Any:
    """A failed Job with pods of trainers in these states. A container of the first pod has failed: that beside the
    trainer, or the init container `init`. Other arguments are fields of the metadata of the first pod."""
    pods = [make_pod(index, "train", **state) for index, state in enumerate(trainers)]
    for pod in pods:
        pod["status"]["phase"] = "Failed"
    failed = {"name": "istio-proxy", "state": ERROR}
    if init is None:
        pods[0]["status"]["containerStatuses"].append(failed)
    else:
        pods[0]["status"]["initContainerStatuses"] = [failed]
        pods[0]["spec"] = {"initContainers": [{"name": "istio-proxy", **init}]}
    pods[0]["metadata"] |= first
    conditions = [{"type": condition, "status": "True", "lastTransitionTime": ENDED_AT}]
    (child,) = Observed.from_manifests("u", [make_job("train", owner="u", conditions=conditions)], pods).attempts
    return child


def test_a_complete_job_whose_pods_are_gone_has_succeeded() -> None:
    conditions = [{"type": "Complete", "status": "True", "lastTransitionTime": ENDED_AT}]
    (child,) = Observed.from_manifests("u", [make_job("train", owner="u", conditions=conditions)], []).attempts
    assert (child.succeeded, child.ended_at) == (True, ENDED_AT)


def test_trainers_that_run_while_a_job_begins_to_fail_are_waited_for() -> None:
    child = failed_job(OVER, RUNNING, condition="FailureTarget")
    assert (child.succeeded, child.failed, child.active) == (False, False, True)


@pytest.mark.parametrize("condition", ["FailureTarget", "Failed"])
def test_a_stage_has_succeeded_if_all_trainers_have_although_another_container_failed(condition: str) -> None:
    """With FailureTarget, Kubernetes is about to delete the other pods."""
    child = failed_job(OVER, OVER, condition=condition)
    assert (child.succeeded, child.failed, child.active, child.ended_at) == (True, False, False, ENDED_AT)
    assert child.pods[0].failed_containers == ("container istio-proxy ended with status 3",)


@pytest.mark.parametrize(
    ("child", "message"),
    [
        pytest.param(
            failed_job(OVER, STOPPED),
            "failed although its trainer had succeeded: container istio-proxy ended with status 3",
            id="the other trainer was stopped",
        ),
        pytest.param(
            failed_job(OVER),
            "failed although its trainer had succeeded: container istio-proxy ended with status 3",
            id="the other pod was deleted",
        ),
        pytest.param(
            failed_job(NOT_STARTED, STOPPED, init={}),
            "failed before its trainer was started: init container istio-proxy ended with status 3",
            id="an init container failed",
        ),
    ],
)
def test_a_container_that_fails_the_pod_of_a_trainer_is_named(child: Any, message: str) -> None:
    assert (child.succeeded, child.failed) == (False, True)
    judged = failure.classify_failure(child)
    assert (judged.retry_class, judged.status.failure_class) == (RetryClass.RETRYABLE, "ContainerFailed")
    assert judged.status.message == f"{NAME}-0-train {message}"
    assert judged.status.advice.startswith("Read the log of the container with kubectl logs -c")


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        pytest.param(failed_job(FAILED, STOPPED), "InternalError", id="its trainer failed"),
        pytest.param(failed_job(OVER, FAILED), "InternalError", id="the other trainer failed"),
        pytest.param(failed_job(STOPPED, init={"restartPolicy": "Always"}), "PodDeleted", id="a sidecar"),
        pytest.param(failed_job(NOT_STARTED, deletionTimestamp=ENDED_AT), "Lost", id="a deleted pod"),
    ],
)
def test_another_container_is_not_the_cause_of_another_failure(child: Any, expected: str) -> None:
    assert failure.classify_failure(child).status.failure_class == expected


@pytest.mark.parametrize(
    ("init", "sidecar", "expected"),
    [
        ({}, {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}, "container proxy: ImagePullBackOff: m"),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, {}, "container init: CrashLoopBackOff"),
        ({"running": {}}, {"waiting": {"reason": "PodInitializing"}}, "init container init is running"),
        ({"terminated": {"exitCode": 0}}, {"running": {}}, "PodInitializing"),
    ],
)
def test_the_container_that_keeps_a_pod_from_starting_is_named(
    init: dict[str, Any], sidecar: dict[str, Any], expected: str
) -> None:
    pod = make_pod(0, "train", waiting={"reason": "PodInitializing"})
    pod["status"]["containerStatuses"].append({"name": "proxy", "state": sidecar})
    pod["status"]["initContainerStatuses"] = [{"name": "init", "state": init}]
    (child,) = Observed.from_manifests("u", [make_job("train", owner="u")], [pod]).attempts
    assert child.pods[0].waiting == expected


def kubelet_failed(
    reason: str, message: str, exit_code: int | None = None, *, disrupted: bool = False, stage: str = "train"
) -> Any:
    """The failure of a Job one of whose pods was failed as a whole by the kubelet."""
    jobs = [make_job("train", owner="u", stage=stage, conditions=[{"type": "Failed", "status": "True"}])]
    pod = make_pod(1, "train")
    condition = [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []
    pod["status"] = {"phase": "Failed", "reason": reason, "message": message, "conditions": condition}
    if exit_code is not None:
        state = {"terminated": {"exitCode": exit_code, "finishedAt": "2026-01-01T12:00:00Z"}}
        pod["status"]["containerStatuses"] = [{"name": constants.TRAINER_CONTAINER, "state": state}]
    pod["spec"] = {"nodeName": "node-a"}
    (observed,) = Observed.from_manifests("u", jobs, [pod]).attempts
    return failure.classify_failure(observed)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UnexpectedAdmissionError", "Pod was rejected: Allocate failed, Requested: 1, Available: 0"),
        ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 4000, used: 7000"),
        ("OutOfnvidia.com/gpu", "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"),
        ("NodeShutdown", "Pod was rejected as the node is shutting down."),
    ],
)
def test_a_pod_that_the_kubelet_rejects_is_explained_with_its_message(reason: str, message: str) -> None:
    judged = kubelet_failed(reason, message)
    assert (judged.retry_class, judged.never_ran) == (RetryClass.DISRUPTION, True)
    assert (judged.status.failure_class, judged.status.node) == (reason, "node-a")
    assert judged.status.pod == f"{NAME}-1-train"
    assert judged.status.message == f"{NAME}-1-train was not started on node node-a: {reason}: {message}"


OWN_DISK = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
OWN_TOTAL = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
OWN_LIMIT = 'Container trainer exceeded its local ephemeral storage limit "1Gi". '
OWN_MEMORY = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. "
    "Container trainer was using 20Gi, request is 1Gi, has larger consumption of memory. "
)
OTHERS = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. "


@pytest.mark.parametrize(
    ("message", "disrupted", "kind"),
    [
        (OWN_DISK, False, RetryClass.RETRYABLE),
        (OWN_TOTAL, False, RetryClass.RETRYABLE),
        (OWN_LIMIT, False, RetryClass.RETRYABLE),
        (OWN_MEMORY, True, RetryClass.RETRYABLE),
        (OTHERS, True, RetryClass.DISRUPTION),
        (OTHERS, False, RetryClass.DISRUPTION),
    ],
)
@pytest.mark.parametrize("exit_code", [None, 75, 137])
def test_an_eviction_for_the_jobs_own_usage_is_not_a_disruption(
    message: str, disrupted: bool, kind: RetryClass, exit_code: int | None
) -> None:
    judged = kubelet_failed("Evicted", message, exit_code, disrupted=disrupted)
    assert (judged.retry_class, judged.never_ran) == (kind, False)
    assert (judged.status.failure_class, judged.status.node) == ("Evicted", "node-a")
    assert message.strip() in judged.status.message
    assert ("spec.workers.resources" in judged.status.advice) is (kind is RetryClass.RETRYABLE)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("prepare", "spec.stages.prepare.resources"),
        ("train", "spec.workers.resources"),
        ("evaluate", "spec.stages.evaluate.resources"),
    ],
)
def test_the_advice_for_an_exceeded_limit_names_the_resources_of_the_stage(stage: str, field: str) -> None:
    evicted = kubelet_failed("Evicted", OWN_DISK, stage=stage).status
    assert f"limits of {field}, or" in evicted.advice
    jobs = [make_job("job", owner="u", stage=stage, conditions=[{"type": "Failed", "status": "True"}])]
    pods = [make_pod(1, "job", terminated={"exitCode": 137, "reason": "OOMKilled"})]
    (observed,) = Observed.from_manifests("u", jobs, pods).attempts
    assert f"aise {field}.limits.memory" in failure.classify_failure(observed).status.advice


def test_a_permanent_error_has_precedence_over_a_rejected_pod() -> None:
    judged = kubelet_failed("Evicted", OWN_DISK, 65)
    assert judged.retry_class is RetryClass.PERMANENT
