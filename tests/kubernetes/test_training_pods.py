"""FineTuneJobs on real nodes: real pods train on DeepSpeed, with real storage outside of the cluster."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

import tiny_models
from factories import make_job, merged
from finetune_cli.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from operator_process import OperatorProcess, events_of, install
from rows import colours
from testcluster.access import Kubectl, condition
from testcluster.forward import Forward
from testcluster.images import HOST, host_claim, host_volume
from testcluster.pod_manifests import PACKAGES
from testcluster.pods import PodsCluster

SECRET = "storage"


@dataclass
class Site:
    """A cluster with an operator, a namespace under Pod Security `restricted`, and storage that its pods reach."""

    cluster: PodsCluster
    kubectl: Kubectl
    operator: OperatorProcess
    store: ObjectStore
    bucket: str

    def job(self, name: str = "colours", **spec: Any) -> dict[str, Any]:
        """A classifier of colours on a tiny BERT, two workers."""
        base = {
            "model": {"uri": f"s3://{self.bucket}/model"},
            "data": {"train": [{"uri": f"s3://{self.bucket}/data.jsonl"}]},
            "training": {"learningRate": 1e-3, "epochs": 3, "globalBatchSize": 16},
            "checkpoint": {"everySteps": 4},
            "workers": {"nodes": 2, "sharedMemory": "64Mi"},
            "output": {"uri": f"s3://{self.bucket}/out"},
        }
        return make_job(name, namespace=self.kubectl.namespace, **merged(base, spec))

    def until(self, name: str, kind: str, *, within: float) -> dict[str, Any]:
        """The job once a condition of it is true."""
        what = f"{name} is {kind}"
        found: dict[str, Any] = self.kubectl.until(
            f"ftj/{name}", lambda job: condition(job, kind) == "True", within=within, what=what
        )
        return found


@pytest.fixture(scope="module")
def forwarded(pods_cluster: PodsCluster, store_server: EmbeddedStore) -> Iterator[Forward]:
    with Forward(pods_cluster.host_address, store_server.access.port) as forward:
        yield forward


@pytest.fixture
def site(
    pods_cluster: PodsCluster,
    forwarded: Forward,
    kubectl: Kubectl,
    store_server: EmbeddedStore,
    store: ObjectStore,
    bucket: str,
    tmp_path: Path,
) -> Iterator[Site]:
    install(pods_cluster.control)
    space = kubectl.namespace
    kubectl("label", "namespace", space, "pod-security.kubernetes.io/enforce=restricted")
    access = store_server.access
    keys = {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys}
    kubectl.apply(secret, *host_claim(space))
    volume, mounts = host_volume(claim="host")
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), "/usr/bin", "/bin"])
    additions = {
        "volumes": [volume],
        "volumeMounts": mounts,
        "env": [{"name": "PATH", "value": path}, {"name": "PYTHONPATH", "value": PACKAGES}],
    }
    file = tmp_path / "additions.json"
    file.write_text(json.dumps(additions))
    store.upload_folder(tiny_models.save_tiny_bert(tmp_path / "model"), f"s3://{bucket}/model")
    store.put(f"s3://{bucket}/data.jsonl", colours())
    arguments = (
        f"--namespace={space}",
        f"--trainer-image={HOST}",
        f"--storage-endpoint={forwarded.endpoint}",
        f"--credentials-secret={SECRET}",
        f"--pod-additions={file}",
        "--progress-seconds=1",
    )
    with OperatorProcess(pods_cluster.control, tmp_path / "operator", *arguments) as operator:
        yield Site(pods_cluster, kubectl, operator, store, bucket)
    kubectl("delete", "ftj", "--all", "--wait=false")
    kubectl("delete", "pv", f"host-{space}", "--wait=false")


def pods_of(site: Site, attempt: str) -> dict[str, dict[str, Any]]:
    """Pods of an attempt at training, by their index."""
    selector = f"--selector=batch.kubernetes.io/job-name={attempt}"
    index = "batch.kubernetes.io/job-completion-index"
    return {pod["metadata"]["annotations"][index]: pod for pod in site.kubectl.json("get", "pods", selector)["items"]}


def test_a_pod_that_is_deleted_half_way_costs_an_attempt_and_nothing_else(site: Site, tmp_path: Path) -> None:
    """Two pods on two nodes train with ZeRO-2, one is deleted, the next attempt goes on; the model loads."""
    site.kubectl.apply(site.job(training={"epochs": 12}, checkpoint={"everySteps": 10}, deepspeed={"zeroStage": 2}))
    site.kubectl.until("ftj/colours", has_a_checkpoint, within=200, what="a checkpoint")
    pods = pods_of(site, "colours-r1-train-a1")
    assert {pod["spec"]["nodeName"] for pod in pods.values()} <= {"node-a", "node-b"}
    site.kubectl("delete", "pod", pods["1"]["metadata"]["name"], "--wait=false")

    status = site.until("colours", "Complete", within=300)["status"]
    first, second = (attempt for attempt in status["attempts"] if attempt["stage"] == "train")
    assert (first["outcome"], second["outcome"]) == ("Disruption", "Succeeded")
    assert second["resumedFromStep"] >= 10
    assert (status["restarts"], status["disruptions"], status["progress"]["percent"]) == (0, 1, 100)
    assert status["evaluation"]["tuned"]["Accuracy"] > status["evaluation"]["baseline"]["Accuracy"]
    events = {event["reason"]: event["message"] for event in events_of(site.kubectl, "colours")}
    assert {"Preparing", "Training", "Restarting", "AttemptFailed", "Evaluating", "Succeeded"} <= set(events)
    assert "PodDeleted in colours-r1-train-a1-1: " in events["AttemptFailed"]

    site.store.download_folder(f"{status['artifact']['uri']}/", tmp_path / "exported")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    assert sorted(model.config.label2id) == ["black", "blue", "green", "red"]


def has_a_checkpoint(job: dict[str, Any]) -> bool:
    return job.get("status", {}).get("lastCheckpoint", {}).get("step", 0) >= 10


def test_what_cannot_start_says_why(site: Site) -> None:
    """A Secret that is not there, and an image that nobody has: the words of who knows it, on the object itself."""
    site.kubectl.apply(
        site.job("no-secret", storage={"credentialsSecret": "absent"}),
        site.job("no-image", workers={"image": "finetune.test/absent:1"}),
    )
    for name, words in (("no-secret", 'secret "absent" not found'), ("no-image", "finetune.test/absent:1")):
        job = site.kubectl.until(f"ftj/{name}", waits, within=120, what=f"{name} waits")
        assert job["status"]["phase"] == "Pending"
        assert words in condition_message(job, "Ready")


def waits(job: dict[str, Any]) -> bool:
    return any(entry["reason"] == "WaitingForPods" for entry in job.get("status", {}).get("conditions", []))


def condition_message(job: dict[str, Any], kind: str) -> str:
    return next(str(entry["message"]) for entry in job["status"]["conditions"] if entry["type"] == kind)
