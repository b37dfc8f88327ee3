"""Releases of the chart on a real API server. test_tour.py has one on real nodes, with the operator's image."""

from pathlib import Path

import pytest

from operator_process import CRD
from policy_cases import POLICY
from process_support import ROOT, until
from releases import COLUMN, SYSTEM, Release, changed_chart, own_installation
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.helm import CHART, RELEASE, Helm, HelmError


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
