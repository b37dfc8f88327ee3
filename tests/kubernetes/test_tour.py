"""docs/tour.md, followed on real nodes, and the life of the release that it installs.

The tests are steps of one story, in the order of this file; each of them can also run alone. A job trains while the
release is upgraded, rolled back, uninstalled and installed again: that must not restart its pods.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from doc_pages import blocks_of
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from operator_process import CRD
from process_support import ROOT, base_environment, until
from promoted_models import promoted_files
from releases import COLUMN, SYSTEM, Release, changed_chart, own_installation
from rows import colors
from testcluster.access import condition
from testcluster.builds import Buildah
from testcluster.forward import Forward
from testcluster.helm import RELEASE, Helm
from testcluster.images import host_claim, host_image
from testcluster.pods import PodsCluster
from training_setup import GRACE_SECONDS, SECRET, JobNamespace, additions, attempts_at, is_in_phase
from walkthrough import Walkthrough

TOUR = ROOT / "docs/tour.md"
REGISTRY = "registry.example.com"
"""Of the page. The nodes have its images, so that they pull nothing from it."""
OPERATOR_IMAGE, TRAINER_IMAGE = f"{REGISTRY}/finetune-operator", f"{REGISTRY}/finetune-trainer"
VERSION = "0.1.0"
NAMESPACE, BUCKET, JOB = "ml", "models", "topics"
MODEL = f"s3://{BUCKET}/model"

EXAMPLES = {"json": "a record of the reader's data; the data of the test has the same fields"}


def replaced(endpoint: str, storage: EmbeddedStore) -> dict[str, str]:
    """What differs for this reader of the page."""
    return {
        "https://s3.example.com": endpoint,
        "AWS_ACCESS_KEY_ID=...": f"AWS_ACCESS_KEY_ID={storage.access.access_key}",
        "AWS_SECRET_ACCESS_KEY=...": f"AWS_SECRET_ACCESS_KEY={storage.access.secret_key}",
        # The nodes cannot reach the hub, and this model is smaller.
        "hf://sentence-transformers/all-MiniLM-L6-v2": MODEL,
        # The trainer image of the nodes is empty: its pods mount the programs of this machine.
        "--set storage.credentialsSecret=storage": "--set storage.credentialsSecret=storage --values pods.json",
    }


@dataclass(frozen=True)
class Tour:
    """What a reader has before the section "Clean up"."""

    page: Walkthrough
    jobs: JobNamespace
    release: Release

    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = self.jobs.kubectl.json("get", f"ftj/{JOB}")
        return found

    def bytes_of(self, folder: str) -> dict[str, bytes]:
        found = {info.uri.removeprefix(folder): self.jobs.store.get(info.uri) for info in self.jobs.store.list(folder)}
        assert found, f"{folder} is empty"
        return found


@pytest.fixture(scope="module")
def tour(
    helm: Helm,
    buildah: Buildah,
    operator_image: str,
    pods_cluster: PodsCluster,
    store_server: EmbeddedStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tour]:
    """The page, followed until the section "Clean up"."""
    control = pods_cluster.control
    load_images(pods_cluster, buildah, operator_image)
    with (
        client(store_server) as store,
        Forward(pods_cluster.host_address, store_server.access.port) as forward,
        own_installation(control),
    ):
        kubectl = control.kubectl.within(NAMESPACE)
        jobs = JobNamespace(pods_cluster, kubectl, store, BUCKET, forward.endpoint)
        page = reader(tmp_path_factory.mktemp("tour"), helm, jobs, store_server)
        try:
            page.until("Upload data")
            kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
            kubectl.apply(*host_claim(NAMESPACE))
            page.until("Clean up")
            yield Tour(page, jobs, Release(helm.on(kubectl.kubeconfig, SYSTEM), kubectl.within(SYSTEM), values(jobs)))
        finally:
            kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", within=130)
            kubectl("delete", "pv", f"host-{NAMESPACE}", "--ignore-not-found", "--wait=false")


def load_images(cluster: PodsCluster, buildah: Buildah, operator_image: str) -> None:
    archives = (
        buildah.archive(operator_image, f"{OPERATOR_IMAGE}:{VERSION}"),
        host_image(f"{TRAINER_IMAGE}:{VERSION}"),
    )
    for node in cluster.nodes.values():
        for archive in archives:
            node.load_image(archive)


@contextmanager
def client(storage: EmbeddedStore) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in storage.env().items():
            patch.setenv(name, value)
        yield ObjectStore.connect(StorageSettings(endpoint=storage.endpoint, path_style=True))


def reader(folder: Path, helm: Helm, jobs: JobNamespace, storage: EmbeddedStore) -> Walkthrough:
    """The reader has what the introduction of the page requires: programs, a context, a bucket, a model and data."""
    storage.create_bucket(BUCKET)
    jobs.store.upload_folder(tiny_models.save_tiny_bert(folder / "model"), MODEL)
    jobs.store.put(f"s3://{BUCKET}/data.jsonl", colors())  # of other jobs
    programs = folder / "programs"
    programs.mkdir()
    (programs / "helm").symlink_to(helm.program)
    (programs / "kubectl").symlink_to(jobs.kubectl.program)
    (programs / "finetune").write_text(f'#!/bin/sh\nexec {sys.executable} -m finetune_cli "$@"\n')
    (programs / "finetune").chmod(0o755)
    (folder / "questions.jsonl").write_bytes(colors())
    (folder / "kubeconfig").write_bytes(jobs.kubectl.kubeconfig.read_bytes())  # the page changes its namespace
    (folder / "pods.json").write_text(json.dumps({"pods": pods(), "operator": {"progressSeconds": 1}}))
    environment = base_environment() | {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "HOME": str(folder),
        "KUBECONFIG": str(folder / "kubeconfig"),
        "KUBECACHEDIR": str(folder / "cache"),
        "COLUMNS": "100",
        "LOGNAME": "jane",  # who promotes
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]  # the page sets them
    return Walkthrough(TOUR, folder, environment, replaced(jobs.endpoint, storage), EXAMPLES)


def pods() -> dict[str, Any]:
    return additions() | {"terminationGrace": {"minimumSeconds": GRACE_SECONDS}}


def values(jobs: JobNamespace) -> dict[str, Any]:
    """The values of the page in another form, with permissions only in the namespace of the jobs."""
    return {
        "namespaces": [NAMESPACE],
        "image": {"repository": OPERATOR_IMAGE},
        "trainerImage": {"repository": TRAINER_IMAGE},
        "storage": {"endpoint": jobs.endpoint, "credentialsSecret": SECRET},
        "pods": pods(),
        "operator": {"progressSeconds": 1},
    }


def test_the_record_on_the_page_has_the_fields_of_the_data() -> None:
    (example,) = [json.loads(block.text) for block in blocks_of(TOUR) if block.language == "json"]
    assert set(example) == set(json.loads(colors().splitlines()[0]))


def test_the_tour_ends_with_the_model_of_the_first_run_promoted_again(tour: Tour) -> None:
    assert tour.page.differences == []
    job = tour.job()
    assert condition(job, "Complete") == "True"
    (first,), second = job["status"]["history"], job["status"]["run"]
    assert (first["number"], second["number"]) == (1, 2)
    prepared = {name.split("/")[0] for name in tour.bytes_of(f"s3://{BUCKET}/{JOB}/datasets/")}
    assert prepared == {second["resolved"]["datasetDigest"]}, "the prepared data is used again"

    report = (tour.page.folder / "report.html").read_text()
    assert report.startswith("<!doctype html>") and "finetune" in report  # noqa: PT018
    model = tour.bytes_of(f"{first['artifact']['uri']}/")
    promoted = promoted_files(tour.jobs.store, f"s3://{BUCKET}/{JOB}")
    assert {name: promoted[name] for name in model if name != "README.md"} == {
        name: content for name, content in model.items() if name != "README.md"
    }
    assert model["model.safetensors"] != tour.bytes_of(f"{second['artifact']['uri']}/")["model.safetensors"]


def trainers(jobs: JobNamespace, name: str) -> dict[str, tuple[Any, ...]]:
    """What would change if a training pod of the first attempt restarted."""
    pods = jobs.pods_of(f"{name}-r1-train-a1")
    found = {}
    for index, pod in pods.items():
        (status,) = pod["status"]["containerStatuses"]
        found[index] = (pod["metadata"]["uid"], status["restartCount"], status["state"]["running"]["startedAt"])
    return found


def step(job: dict[str, Any]) -> int:
    return int(job.get("status", {}).get("run", {}).get("progress", {}).get("step", 0))


def test_a_job_trains_through_upgrade_rollback_uninstall_and_an_install_from_a_registry(
    tour: Tour, published: tuple[str, ...], tmp_path: Path
) -> None:
    release, jobs = tour.release, tour.jobs
    first = release.operators()
    assert len(first) == 1, "helm has waited for it"
    jobs.kubectl.apply(jobs.job("long", training={"epochs": 2000}, checkpoint={"everySteps": 20}))
    jobs.until_saved("long", 20)
    trained_by = trainers(jobs, "long")
    assert len(trained_by) == 2

    changed = {"operatorPod": {"annotations": {"changed": "yes"}}, "replicas": 2}
    release.upgrade(changed_chart(tmp_path), {**release.values, **changed})
    assert COLUMN in release.columns()
    second = release.operators()
    assert len(second) == 2, "a leader and a standby"
    assert not first & second, "the operators are others"
    until(lambda: release.leader() in second, within=20, what="one of them leads")
    assert trainers(jobs, "long") == trained_by

    release.rollback(1)
    assert COLUMN not in release.columns()
    third = release.operators()
    assert not second & third
    until(lambda: release.leader() in third, within=20, what="the operator of the first revision leads")
    assert trainers(jobs, "long") == trained_by

    release.uninstall()
    until(lambda: release.objects() == [], within=60, what="the operator is removed")
    assert jobs.kubectl("get", "ftj", "--output=name").split() == [
        "finetunejob.finetune.dev/long",
        f"finetunejob.finetune.dev/{JOB}",
    ]
    assert list(jobs.store.list(f"{tour.job()['status']['run']['artifact']['uri']}/")), "the model is where it was"
    assert trainers(jobs, "long") == trained_by
    left_at = step(jobs.kubectl.json("get", "ftj/long"))

    release.install(*published)
    job = jobs.when("long", lambda found: step(found) > left_at, "its progress is read again")
    assert trainers(jobs, "long") == trained_by
    assert len(attempts_at(job, "train")) == 1
    assert condition(tour.job(), "Complete") == "True"
    jobs.kubectl("patch", "ftj/long", "--type=merge", '--patch={"spec": {"suspend": true}}')
    jobs.when("long", is_in_phase("Suspended"), "the new operator controls it")


def test_the_end_of_the_tour_leaves_only_what_is_in_object_storage(tour: Tour) -> None:
    tour.page.until()
    assert tour.page.differences == []
    kubectl = tour.jobs.kubectl
    left = kubectl("get", "crd,namespaces,clusterroles,clusterrolebindings", "--output=name").split()
    installed = {CRD, NAMESPACE, SYSTEM, RELEASE, *(f"{RELEASE}-{role}" for role in ("view", "edit", "admin"))}
    assert [name for name in left if name.partition("/")[2] in installed] == []
    assert tour.bytes_of(f"s3://{BUCKET}/{JOB}/promoted/")
