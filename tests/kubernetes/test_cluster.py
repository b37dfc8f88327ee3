"""The control plane of the test cluster: an API that knows users and refuses what it should."""

import pytest

from testcluster.access import Kubectl
from testcluster.binaries import KUBERNETES_VERSION
from testcluster.control_plane import ControlPlane


@pytest.fixture(scope="module")
def own_users(control_plane: ControlPlane) -> ControlPlane:
    """A control plane that trusts certificates which we issue."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("the existing cluster's users are not ours to make")
    return control_plane


def test_the_control_plane_says_its_version(own_users: ControlPlane) -> None:
    assert own_users.kubectl.json("version")["serverVersion"]["gitVersion"] == KUBERNETES_VERSION


def test_a_service_account_may_do_nothing_unless_it_is_said(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    path = control_plane.service_account_kubeconfig(kubectl.namespace, "default")
    account = kubectl.as_user(path)
    denied = account.run("get", "jobs").stderr
    assert f'"system:serviceaccount:{kubectl.namespace}:default" cannot list resource "jobs"' in denied
    kubectl("create", "role", "reader", "--verb=list", "--resource=jobs.batch")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:default")
    kubectl.until("rolebinding/reader", lambda _: account.run("get", "jobs").returncode == 0, within=10)


def test_a_user_may_do_what_his_groups_may(own_users: ControlPlane, kubectl: Kubectl) -> None:
    user = kubectl.as_user(own_users.kubeconfig("jane", ["developers"]))
    assert 'User "jane" cannot create resource "configmaps"' in user.run("create", "configmap", "mine").stderr
    kubectl("create", "rolebinding", "developers", "--clusterrole=edit", "--group=developers")
    kubectl.until(
        "rolebinding/developers", lambda _: user.run("create", "configmap", "mine").returncode == 0, within=10
    )


def test_what_an_object_owns_goes_with_it(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "owner")
    uid = kubectl.json("get", "configmap/owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]}})
    kubectl("delete", "configmap/owner")
    kubectl.until(
        "configmaps", lambda found: "owned" not in [one["metadata"]["name"] for one in found["items"]], within=30
    )
