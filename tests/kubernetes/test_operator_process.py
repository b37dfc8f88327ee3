"""The operator as a process, with the permissions of an installation: it may be killed, run twice, or be down."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import make_job
from operator_process import OperatorProcess, events_of
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane
from testcluster.daemons import until


@pytest.fixture
def operator(control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(control_plane, tmp_path, f"--namespace={namespace}", "--progress-seconds=0.5")
    with process:
        yield process


def until_complete(kubectl: Kubectl, name: str) -> dict[str, object]:
    job: dict[str, object] = kubectl.until(f"ftj/{name}", lambda job: condition(job, "Complete") == "True", within=90)
    return job


@pytest.mark.usefixtures("kubelet")
def test_a_job_is_reconciled_from_apply_to_complete(operator: OperatorProcess, kubectl: Kubectl) -> None:
    kubectl.apply(make_job("plain", namespace=kubectl.namespace))
    kubectl("wait", "--for=condition=Complete", "ftj/plain", "--timeout=60s", within=70)
    assert [event["reason"] for event in events_of(kubectl, "plain")] == [
        "Preparing",
        "Training",
        "Evaluating",
        "Succeeded",
    ]
    row = kubectl("get", "ftj", "plain").splitlines()[1].split()
    assert row[:3] == ["plain", "Succeeded", "Succeeded"]
    status, text = operator.get("/metrics")
    assert status == 200
    for line in (
        'finetune_attempts_ended_total{outcome="Succeeded",reason="",stage="train"} 1.0',
        'finetune_jobs{phase="Succeeded"} 1.0',
        'controller_runtime_max_concurrent_reconciles{controller="finetunejob"} 24.0',
        'workqueue_depth{name="finetunejob"} 0.0',
        "finetune_time_to_first_step_seconds_count 1.0",
    ):
        assert line in text.splitlines(), line
    assert "plain" not in text, "never the name of a job as a label"
    assert operator.get("/healthz") == (200, "ok")
    assert operator.stop() == 0


@pytest.mark.usefixtures("kubelet")
def test_events_during_a_downtime_of_the_operator_are_processed_later(
    operator: OperatorProcess, kubectl: Kubectl
) -> None:
    kubectl.apply(make_job("lonely", namespace=kubectl.namespace))
    until(lambda: len(kubectl.json("get", "jobs")["items"]) == 1, within=30, what="the prepare Job")
    operator.kill()
    kubectl.apply(make_job("newcomer", namespace=kubectl.namespace))
    kubectl.until("job/lonely-r1-prepare-a1", lambda job: condition(job, "Complete") == "True", within=30)
    operator.start().ready()
    for name in ("lonely", "newcomer"):
        until_complete(kubectl, name)


@pytest.mark.usefixtures("kubelet")
def test_two_operators_have_the_same_effect_as_one(
    operator: OperatorProcess, control_plane: ControlPlane, kubectl: Kubectl, tmp_path: Path
) -> None:
    second = OperatorProcess(
        control_plane, tmp_path / "second", f"--namespace={kubectl.namespace}", "--progress-seconds=0.5"
    )
    with second:
        for number in range(5):
            kubectl.apply(make_job(f"twice-{number}", namespace=kubectl.namespace))
        for number in range(5):
            until_complete(kubectl, f"twice-{number}")
    assert len(kubectl.json("get", "jobs")["items"]) == 15
    reasons = [event["reason"] for event in events_of(kubectl, "twice-0")]
    assert sorted(reasons) == ["Evaluating", "Preparing", "Succeeded", "Training"]


@pytest.mark.usefixtures("kubelet", "operator")
def test_an_invalid_job_is_reported_and_not_started(kubectl: Kubectl) -> None:
    """The schema cannot express this rule: a micro-batch that does not divide the examples of a process."""
    job = make_job("wrong", namespace=kubectl.namespace, training={"globalBatchSize": 16, "microBatchSize": 5})
    kubectl.apply(job)
    found = kubectl.until("ftj/wrong", lambda job: condition(job, "Accepted") == "False", within=30)
    assert found["status"]["phase"] == "Invalid"
    assert "spec.training.microBatchSize must divide the 16 examples" in str(found["status"]["conditions"])
    assert kubectl.json("get", "jobs")["items"] == []
    assert [event["reason"] for event in events_of(kubectl, "wrong")] == ["InvalidSpec"]


@pytest.mark.usefixtures("kubelet", "operator")
def test_a_quota_that_rejects_the_pods_is_reported_with_its_message(kubectl: Kubectl) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    kubectl.apply(quota)
    kubectl.until("resourcequota/none", lambda found: "hard" in found.get("status", {}), within=30)
    kubectl.apply(make_job("poor", namespace=kubectl.namespace))
    found = kubectl.until("ftj/poor", lambda job: "exceeded quota" in str(job.get("status")), within=60)
    assert found["status"]["phase"] == "Pending"
    kubectl("delete", "resourcequota", "none")


@pytest.mark.usefixtures("kubelet", "operator")
def test_nothing_is_written_while_nothing_changes(kubectl: Kubectl) -> None:
    kubectl.apply(make_job("still", namespace=kubectl.namespace))
    before = until_complete(kubectl, "still")["metadata"]["resourceVersion"]  # type: ignore[index]
    kubectl.apply(make_job("kept", namespace=kubectl.namespace, suspend=True))
    kubectl.until("ftj/kept", lambda job: condition(job, "Suspended") == "True", within=30)
    suspended = kubectl.json("get", "ftj/kept")["metadata"]["resourceVersion"]
    time.sleep(60)
    assert kubectl.json("get", "ftj/still")["metadata"]["resourceVersion"] == before
    assert kubectl.json("get", "ftj/kept")["metadata"]["resourceVersion"] == suspended
