"""What the operator sees in manifests: which pods are whose, and how they ended."""

from typing import Any

from finetune_api import constants
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


def make_job(uid: str, owner: str, **status: Any) -> dict[str, Any]:
    metadata = {"name": NAME, "uid": uid, "labels": LABELS, "ownerReferences": owned_by(owner)}
    return {"metadata": metadata, "spec": {"parallelism": 2}, "status": status}


def make_pod(index: int, owner: str, **state: Any) -> dict[str, Any]:
    """A pod of the Job with that uid; the state of its container."""
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
    (stage,) = Observed.from_manifests("new", jobs, pods).stages
    assert [pod.name for pod in stage.pods] == [f"{NAME}-0-new-train", f"{NAME}-1-new-train"]


def test_a_pod_that_the_kernel_has_ended_for_memory_is_called_so_though_it_left_no_word() -> None:
    jobs = [make_job("train", owner="u", conditions=[{"type": "Failed", "status": "True"}])]
    pods = [make_pod(1, "train", terminated={"exitCode": 137, "reason": "OOMKilled"})]
    (stage,) = Observed.from_manifests("u", jobs, pods).stages
    judged = failure.judge(stage)
    assert (judged.status.failure_class, judged.exit_code) == ("OutOfMemory", 137)
    assert judged.status.message.startswith(f"{NAME}-1-train was ended by the kernel because its memory was used up")
    assert "training.microBatchSize" in judged.status.advice
