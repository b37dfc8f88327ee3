"""Releases of the chart on a real API server, and the life of one on real nodes, with the operator's image.

A job trains throughout that life: what happens to the release must not restart its pods.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import GROUP, VERSION
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from operator_process import CRD, install
from policy_cases import POLICY
from process_support import ROOT, until
from testcluster.access import Kubectl, condition
from testcluster.builds import Buildah
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.helm import CHART, RELEASE, Helm, HelmError, Values
from testcluster.images import HOST
from testcluster.pods import PodsCluster
from training_setup import GRACE_SECONDS, SECRET, JobNamespace, additions, attempts_at, is_in_phase, job_namespace

SYSTEM = "finetune-system"
VERBS = {"get", "create", "delete"}
COLUMN = "Learning-Rate"
"""A printer column that the changed CRD has in addition."""


@dataclass(frozen=True)
class Release:
    """The release of the chart on the cluster."""

    helm: Helm
    kubectl: Kubectl
    """In the namespace of the release."""
    values: Values

    def install(self, *chart: str | Path) -> None:
        self.helm.with_values(
            *("install", RELEASE, *chart, "--create-namespace", "--wait", "--timeout=120s"), values=self.values
        )

    def upgrade(self, chart: Path, values: Values) -> None:
        self.helm.with_values("upgrade", RELEASE, chart, "--wait", "--timeout=120s", values=values)

    def rollback(self, revision: int) -> None:
        self.helm("rollback", RELEASE, str(revision), "--wait", "--timeout=120s")

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--cascade=foreground", "--wait", "--timeout=120s")

    def objects(self) -> list[str]:
        """Names of what the release has in its namespace."""
        selector = "--selector=app.kubernetes.io/name=finetune-operator"
        return self.kubectl("get", "all,serviceaccounts,configmaps", selector, "--output=name").split()

    def operators(self) -> set[str]:
        """UIDs of the operator's pods; none may have restarted."""
        listed = self.kubectl.json("get", "pods")["items"]
        pods = [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        statuses = [status for pod in pods for status in pod["status"]["containerStatuses"]]
        assert all(status["restartCount"] == 0 for status in statuses)
        return {pod["metadata"]["uid"] for pod in pods}

    def leader(self) -> str | None:
        """UID of the pod that holds the Lease."""
        holder = self.kubectl.json("get", f"lease/{RELEASE}")["spec"].get("holderIdentity", "")
        pods = self.kubectl.json("get", "pods")["items"]
        named = (pod["metadata"]["uid"] for pod in pods if holder.startswith(f"{pod['metadata']['name']}_"))
        return next(named, None)

    def columns(self) -> set[str]:
        """Printer columns of the CRD on the server."""
        (version,) = self.kubectl.json("get", f"crd/{CRD}")["spec"]["versions"]
        return {column["name"] for column in version["additionalPrinterColumns"]}


@pytest.fixture
def jobs(
    pods_cluster: PodsCluster, store_server: EmbeddedStore, storage_settings: StorageSettings
) -> Iterator[JobNamespace]:
    with job_namespace(pods_cluster, store_server, ObjectStore.connect(storage_settings)) as found:
        yield found


@pytest.fixture(scope="module")
def published(helm: Helm, registry: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The chart as `make chart` packages it, in a registry: arguments of helm."""
    folder = tmp_path_factory.mktemp("chart")
    subprocess.run(["make", "chart", f"HELM={helm.program}", f"DIST={folder}"], cwd=ROOT, check=True)
    (package,) = folder.iterdir()
    helm("push", package, f"oci://{registry}/charts", "--plain-http")
    return f"oci://{registry}/charts/{CHART.name}", "--version=0.1.0", "--plain-http"


@pytest.fixture
def release(helm: Helm, buildah: Buildah, operator_image: str, jobs: JobNamespace) -> Iterator[Release]:
    """Not installed yet, on a cluster without the CRD; the other tests' CRD and rights are there again afterwards."""
    control = jobs.cluster.control
    archive = buildah.archive(operator_image, operator_image)
    for node in jobs.cluster.nodes.values():
        node.load_image(archive)
    repository, tag = HOST.rsplit(":", 1)
    values = {
        "namespaces": [jobs.kubectl.namespace],
        "trainerImage": {"repository": repository, "tag": tag},
        "storage": {"endpoint": jobs.endpoint, "credentialsSecret": SECRET},
        "pods": additions() | {"terminationGrace": {"minimumSeconds": GRACE_SECONDS}},
        "operator": {"progressSeconds": 1},
    }
    with own_installation(control):
        yield Release(helm.on(control.kubectl.kubeconfig, SYSTEM), control.kubectl.within(SYSTEM), values)


@contextmanager
def own_installation(control: ControlPlane) -> Iterator[None]:
    """Remove the CRD and the permissions of the other tests; afterwards remove the installation and install them."""
    roles = [f"clusterrole/{RELEASE}{name}" for name in ("", "-view", "-edit", "-admin")]
    permissions = ("delete", f"clusterrolebinding/{RELEASE}", *roles, "--ignore-not-found")
    control.kubectl(*permissions)
    control.kubectl("delete", f"crd/{CRD}", "--ignore-not-found")
    # A CRD that is created again while the old one is still served may never be established.
    served = ("get", "--raw", f"/apis/{GROUP}/{VERSION}")
    until(lambda: control.kubectl.run(*served).returncode != 0, within=30, what="the CRD is not served any more")
    try:
        yield
    finally:
        control.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=120s", within=130)
        control.kubectl(*permissions)
        install(control)


def changed_chart(folder: Path) -> Path:
    """The next version of the chart, whose CRD has another column."""
    chart = folder / "finetune-operator"
    shutil.copytree(CHART, chart)
    template = chart / "templates/crd.yaml"
    first = "    additionalPrinterColumns:\n"
    column = f"    - name: {COLUMN}\n      type: number\n      jsonPath: .spec.training.learningRate\n"
    text = template.read_text()
    assert text.count(first) == 1
    template.write_text(text.replace(first, first + column))
    described = chart / "Chart.yaml"
    described.write_text(described.read_text().replace("\nversion: 0.1.0", "\nversion: 0.1.1"))
    return chart


def test_the_api_server_accepts_everything_that_the_chart_can_create(helm: Helm, kubectl: Kubectl) -> None:
    everything = {
        "namespaces": [kubectl.namespace],
        "crd": {"install": False},  # see test_crd_on_server.py
        "serviceAccount": {"annotations": {"role": "arn"}},
        "imagePullSecrets": [{"name": "registry"}],
        "pods": {"env": [{"name": "A", "value": "b"}], "defaults": {"workers": {"schedulerName": "other"}}},
        "operatorPod": {
            "annotations": {"a": "b"},
            "labels": {"a": "b"},
            "resources": {"limits": {"cpu": 2}},
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
        },
        "metrics": {"service": {"annotations": {"a": "b"}}, "dashboard": {"create": True}},
        "networkPolicies": {
            "operator": {"create": True, "metricsFrom": [{"namespaceSelector": {}}]},
            "jobs": {"create": True},
        },
        "podDisruptionBudget": {"create": True},
        "jobPolicy": POLICY | {"requireLabelOnSecrets": True, "admission": {"create": True}},
    }
    here = helm.on(kubectl.kubeconfig, kubectl.namespace)
    for values in (everything, everything | {"namespaces": []}):
        assert kubectl.refusal(*here.render(values, release="everything").values()) is None


@pytest.mark.parametrize(
    ("role", "verbs"),
    [("view", {"get"}), ("edit", {"get", "create", "delete"}), ("admin", {"get", "create", "delete"})],
)
def test_users_get_permissions_on_jobs_with_the_roles_of_the_cluster(
    helm: Helm, admin: Path, kubectl: Kubectl, role: str, verbs: set[str]
) -> None:
    rendered = helm.render({}, release="roles")
    own = [one for (kind, name), one in rendered.items() if kind == "ClusterRole" and name.endswith(f"-{role}")]
    kubectl.apply(*own)
    try:
        kubectl("create", "rolebinding", "jane", f"--clusterrole={role}", "--user=jane")

        def allowed() -> set[str]:
            done = {
                verb: kubectl.run("auth", "can-i", verb, "finetunejobs", "--as=jane")
                for verb in ("get", "create", "delete")
            }
            return {verb for verb, answer in done.items() if answer.stdout.strip() == "yes"}

        until(lambda: allowed() == verbs, within=30, what=f"jane may {verbs}")
    finally:
        kubectl("delete", "clusterrole", *(one["metadata"]["name"] for one in own))


def test_an_installation_with_kubectl_can_be_taken_over_by_helm(
    helm: Helm, control_plane: ControlPlane | ExistingCluster, tmp_path: Path
) -> None:
    if isinstance(control_plane, ExistingCluster):
        pytest.skip("it removes the CRD, and with it all jobs")
    kubectl = control_plane.kubectl.within(SYSTEM)
    release = Release(helm.on(kubectl.kubeconfig, SYSTEM), kubectl, {})
    with own_installation(control_plane):
        kubectl("apply", "--server-side", "-f", str(ROOT / "manifests/install.yaml"))
        release.helm("install", RELEASE, CHART, "--take-ownership")
        changed = changed_chart(tmp_path)
        with pytest.raises(HelmError, match=r"conflict with .*kubectl"):
            release.helm("upgrade", RELEASE, changed)
        release.helm("upgrade", RELEASE, changed, "--force-conflicts")
        assert COLUMN in release.columns()
        release.helm("uninstall", RELEASE)
        assert kubectl.run("get", f"crd/{CRD}").returncode == 0


def test_leader_election_can_be_switched_off_and_on_by_upgrades(helm: Helm, kubectl: Kubectl) -> None:
    """The API server refuses the strategy Recreate with parameters of a rolling update, which it has added itself."""
    values = {"namespaces": [kubectl.namespace], "crd": {"install": False}, "rbac": {"aggregate": False}}
    here = helm.on(kubectl.kubeconfig, kubectl.namespace)
    surges = []
    for command, enabled in (("install", True), ("upgrade", False), ("upgrade", True)):
        here.with_values(command, RELEASE, CHART, values=values | {"leaderElection": {"enabled": enabled}})
        surges.append(kubectl.json("get", "deployment", RELEASE)["spec"]["strategy"]["rollingUpdate"]["maxSurge"])
    assert surges == [1, 0, 1]


def test_a_chart_in_a_registry_installs_the_same_objects_as_its_folder(
    helm: Helm, kubectl: Kubectl, published: tuple[str, ...]
) -> None:
    values = {"namespaces": [kubectl.namespace], "crd": {"install": False}, "rbac": {"aggregate": False}}
    here = helm.on(kubectl.kubeconfig, kubectl.namespace)
    here.with_values("install", RELEASE, *published, values=values)
    from_folder = here.with_values("template", RELEASE, CHART, values=values)
    assert here("get", "manifest", RELEASE).strip() == from_folder.strip()
    # kubectl exits with 1 if an object on the server is missing or differs.
    same = ("diff", "--server-side", "--force-conflicts", "--filename=-")
    assert kubectl.run(*same, stdin=from_folder).returncode == 0
    scaled = from_folder.replace("replicas: 1", "replicas: 2")
    assert kubectl.run(*same, stdin=scaled).returncode == 1


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
    release: Release, jobs: JobNamespace, published: tuple[str, ...], tmp_path: Path
) -> None:
    release.install(CHART)
    first = release.operators()
    assert len(first) == 1, "helm has waited for it"

    jobs.kubectl.apply(jobs.job("done"))
    done = jobs.until("done", "Complete")
    model = done["status"]["run"]["artifact"]["uri"]
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
        "finetunejob.finetune.dev/done",
        "finetunejob.finetune.dev/long",
    ]
    assert list(jobs.store.list(f"{model}/")), "the model is where it was"
    assert trainers(jobs, "long") == trained_by
    left_at = step(jobs.kubectl.json("get", "ftj/long"))

    release.install(*published)
    job = jobs.when("long", lambda found: step(found) > left_at, "its progress is read again")
    assert trainers(jobs, "long") == trained_by
    assert len(attempts_at(job, "train")) == 1
    assert condition(jobs.kubectl.json("get", "ftj/done"), "Complete") == "True"
    jobs.kubectl("patch", "ftj/long", "--type=merge", '--patch={"spec": {"suspend": true}}')
    jobs.when("long", is_in_phase("Suspended"), "the new operator controls it")
