"""FineTuneJobs on real nodes: real pods train on DeepSpeed, with real storage outside of the cluster."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


def test_a_job_trains_in_two_pods_and_its_model_is_in_storage(site: Site) -> None:
    site.kubectl.apply(site.job())
    job = site.until("colours", "Complete", within=240)
    status = job["status"]
    assert status["phase"] == "Succeeded"
    assert [attempt["stage"] for attempt in status["attempts"]] == ["prepare", "train", "evaluate"]
    assert site.store.exists(f"{status['artifact']['uri']}/model.safetensors")
    assert status["evaluation"]["tuned"]["Accuracy"] > status["evaluation"]["baseline"]["Accuracy"]
    reasons = [event["reason"] for event in events_of(site.kubectl, "colours")]
    assert reasons == ["Preparing", "Training", "Evaluating", "Succeeded"]
