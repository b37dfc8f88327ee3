"""Requirements of FineTuneJobs on the nodes of a test: an operator, a namespace, storage, a tiny model and data."""

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models
from factories import make_job, merged
from finetune_cli.local import demo_assets
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from operator_process import OperatorProcess, events_of, install
from rows import colors
from testcluster.access import Kubectl, condition, documents
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.forward import Forward
from testcluster.images import HOST, host_claim, host_volume
from testcluster.pod_manifests import PACKAGES
from testcluster.pods import PodsCluster

SECRET = "storage"
GRACE_SECONDS = 15
"""Grace period of a pod. Saving a tiny model takes less than a second; a worker that waits for a lost one uses all
of it."""
TIMEOUT_SECONDS = 400.0
"""Timeout for a stage or two. It is generous, because this machine may have other work."""

Job = dict[str, Any]
Pod = dict[str, Any]


@contextmanager
def fresh_namespace(control: ControlPlane | ExistingCluster) -> Iterator[str]:
    """A namespace in which pods can be created. A test may delete it."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    # No pod is admitted without it. A controller creates it too, sooner or later.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    manifests = documents([space, account])
    control.kubectl.within(name)("apply", "--server-side", "--validate=false", "-f", "-", stdin=manifests)
    try:
        yield name
    finally:
        control.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@dataclass
class JobNamespace:
    """A namespace under Pod Security `restricted`, and storage that its pods reach. It has no operator of its own."""

    cluster: PodsCluster
    kubectl: Kubectl
    store: ObjectStore
    bucket: str
    endpoint: str
    """Of the storage, for pods."""

    def job(self, name: str, **spec: Any) -> Job:
        """A classifier of colors on a tiny BERT, two workers."""
        base = {
            "model": {"uri": f"s3://{self.bucket}/model"},
            "data": {"train": [{"uri": f"s3://{self.bucket}/data.jsonl"}]},
            "training": {"learningRate": 1e-3, "epochs": 3, "globalBatchSize": 16},
            "checkpoint": {"everySteps": 4},
            "workers": {"nodes": 2, "sharedMemory": "64Mi"},
            "output": {"uri": f"s3://{self.bucket}/{name}"},
        }
        return make_job(name, namespace=self.kubectl.namespace, **merged(base, spec))

    def long_job(self, name: str, **spec: Any) -> Job:
        """The same with a long training of many short steps, for tests that disturb it. It learns all colors."""
        training = {"epochs": 25, "learningRate": 5e-3, "warmup": {"ratio": 0.1}}
        long = {"training": training, "checkpoint": {"everySteps": 10}}
        return self.job(name, **merged(long, spec))

    def cache(self, folder: Path) -> dict[str, Any]:
        """`spec.workers.cache` in a folder of this machine, which both nodes share."""
        folder.mkdir()
        folder.chmod(0o777)
        self.kubectl.apply(*host_claim(self.kubectl.namespace, "cache", folder))
        return {"claimName": "cache"}

    def when(self, name: str, holds: Callable[[Job], Any], what: str, *, within: float = TIMEOUT_SECONDS) -> Job:
        """Wait until the condition holds, and return the job."""
        what = f"{name}: {what}"
        found: Job = self.kubectl.until(f"ftj/{name}", holds, within=within, what=what)
        return found

    def until(self, name: str, kind: str, *, within: float = TIMEOUT_SECONDS) -> Job:
        """Wait until a condition of the job is true, and return the job; fails at once if it ended with another one."""

        def holds(job: Job) -> bool:
            assert kind == "Failed" or condition(job, "Failed") != "True", json.dumps(job["status"], indent=1)
            return condition(job, kind) == "True"

        return self.when(name, holds, kind, within=within)

    def wait_for_complete(self, name: str) -> None:
        """Wait like a user's script."""
        limit = f"--timeout={2 * TIMEOUT_SECONDS:.0f}s"
        done = self.kubectl.run(
            "wait", "--for=condition=Complete", f"ftj/{name}", limit, within=2 * TIMEOUT_SECONDS + 10
        )
        assert done.returncode == 0, done.stderr + json.dumps(
            self.kubectl.json("get", f"ftj/{name}")["status"], indent=1
        )

    def until_saved(self, name: str, step: int = 10) -> Job:
        """Wait until a checkpoint of that step or a later one is committed, and return the job."""

        def has_checkpoint(job: Job) -> bool:
            return bool(job.get("status", {}).get("run", {}).get("lastCheckpoint", {}).get("step", 0) >= step)

        return self.when(name, has_checkpoint, f"a checkpoint of step {step}")

    def pods_of(self, attempt: str) -> dict[str, Pod]:
        """Pods of an attempt at a stage, by their index."""
        index = "batch.kubernetes.io/job-completion-index"
        found = self.kubectl.json("get", "pods", f"--selector=batch.kubernetes.io/job-name={attempt}")["items"]
        return {pod["metadata"]["annotations"][index]: pod for pod in found}

    def events(self, name: str) -> dict[str, str]:
        """Reason -> message of the Events on the job; the last one for each reason."""
        return {event["reason"]: event["message"] for event in events_of(self.kubectl, name)}

    def children(self, name: str) -> list[str]:
        """Names of all objects with the job's label: `pod/...`, `job.batch/...`, ..."""
        selector = f"--selector=finetune.dev/job={name}"
        return self.kubectl("get", "jobs,pods,services,configmaps", selector, "--output=name").split()

    def until_no_children(self, name: str, *, within: float = TIMEOUT_SECONDS) -> None:
        """Wait until no object has the job's label."""
        selected = f"--selector=finetune.dev/job={name}"
        for kind in ("jobs", "services", "configmaps", "pods"):
            self.kubectl("wait", "--for=delete", kind, selected, f"--timeout={within:.0f}s", within=within + 10)

    def remove(self, name: str) -> None:
        """Delete a job after its test, because its pods would slow down the next one."""
        self.kubectl("delete", f"ftj/{name}", "--ignore-not-found")
        self.kubectl("delete", "pods", f"--selector=finetune.dev/job={name}", "--force", "--grace-period=0")


@dataclass
class TrainingSetup(JobNamespace):
    """The same with an operator."""

    operator: OperatorProcess


@contextmanager
def training_setup(
    cluster: PodsCluster, storage: EmbeddedStore, store: ObjectStore, *more: str
) -> Iterator[TrainingSetup]:
    """A setup that is removed afterwards. `store` is a client of the storage, `more` are arguments of the operator."""
    install(cluster.control)
    with (
        tempfile.TemporaryDirectory(prefix="finetune-operator-") as folder,
        job_namespace(cluster, storage, store) as space,
    ):
        file = Path(folder) / "additions.json"
        file.write_text(json.dumps(additions()))
        arguments = (
            f"--namespace={space.kubectl.namespace}",
            f"--trainer-image={HOST}",
            f"--storage-endpoint={space.endpoint}",
            f"--credentials-secret={SECRET}",
            f"--pod-additions={file}",
            f"--termination-grace={GRACE_SECONDS}",
            "--progress-seconds=1",
            *more,
        )
        with OperatorProcess(cluster.control, Path(folder) / "operator", *arguments) as operator:
            yield TrainingSetup(**vars(space), operator=operator)


@contextmanager
def job_namespace(cluster: PodsCluster, storage: EmbeddedStore, store: ObjectStore) -> Iterator[JobNamespace]:
    """A namespace with everything that jobs need except operator and CRD; it is removed afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="finetune-site-") as folder,
        Forward(cluster.host_address, storage.access.port) as forwarded,
        fresh_namespace(cluster.control) as namespace,
    ):
        kubectl = cluster.control.kubectl.within(namespace)
        bucket = f"site-{namespace}"
        storage.create_bucket(bucket)
        store.upload_folder(tiny_models.save_tiny_bert(Path(folder) / "model"), f"s3://{bucket}/model")
        store.put(f"s3://{bucket}/data.jsonl", colors())
        _prepare_namespace(kubectl, storage)
        try:
            yield JobNamespace(cluster, kubectl, store, bucket, forwarded.endpoint)
        finally:
            kubectl("delete", "ftj", "--all", "--wait=false")
            kubectl("delete", "pv", f"host-{namespace}", f"cache-{namespace}", "--ignore-not-found", "--wait=false")


def _prepare_namespace(kubectl: Kubectl, storage: EmbeddedStore) -> None:
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    access = storage.access
    keys = {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys}
    kubectl.apply(secret, *host_claim(kubectl.namespace))


def additions() -> dict[str, Any]:
    """This machine's Python and its packages, for every trainer pod."""
    volume, mounts = host_volume(claim="host")
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), "/usr/bin", "/bin"])
    environment = [{"name": "PATH", "value": path}, {"name": "PYTHONPATH", "value": PACKAGES}]
    # Both nodes are this machine: two workers with one thread per core each would slow each other down.
    environment.append({"name": "OMP_NUM_THREADS", "value": "1"})
    return {"volumes": [volume], "volumeMounts": mounts, "env": environment}


def upload_demo(storage: EmbeddedStore, store: ObjectStore) -> None:
    """Upload what `finetune demo` uploads for the quickstart: a real model and real questions."""
    storage.create_bucket("demo")
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    store.upload_folder(demo_assets.model_folder(), "s3://demo/models/all-MiniLM-L6-v2")
    store.put("s3://demo/data/questions.jsonl", demo_assets.as_jsonl(questions))


def attempts_at(job: Job, stage: str) -> list[dict[str, Any]]:
    """The attempts at a stage in status, oldest first."""
    attempts = job.get("status", {}).get("run", {}).get("attempts", [])
    return [attempt for attempt in attempts if attempt["stage"] == stage]


def is_in_phase(phase: str) -> Callable[[Job], bool]:
    return lambda job: job.get("status", {}).get("phase") == phase
