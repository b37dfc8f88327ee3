"""The control plane of the test cluster: an API with users, which rejects invalid requests."""

import pytest

from testcluster.access import Kubectl
from testcluster.binaries import KUBERNETES_VERSION
from testcluster.control_plane import ControlPlane


@pytest.fixture(scope="module")
def own_users(control_plane: ControlPlane) -> ControlPlane:
    """A control plane that accepts our certificates."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("users of an existing cluster cannot be created")
    return control_plane


def test_the_control_plane_reports_its_version(own_users: ControlPlane) -> None:
    assert own_users.kubectl.json("version")["serverVersion"]["gitVersion"] == KUBERNETES_VERSION


def test_a_service_account_has_no_permissions_by_default(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    path = control_plane.service_account_kubeconfig(kubectl.namespace, "default")
    account = kubectl.as_user(path)
    denied = account.run("get", "jobs").stderr
    assert f'"system:serviceaccount:{kubectl.namespace}:default" cannot list resource "jobs"' in denied
    kubectl("create", "role", "reader", "--verb=list", "--resource=jobs.batch")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:default")
    kubectl.until("rolebinding/reader", lambda _: account.run("get", "jobs").returncode == 0, within=10)


def test_a_user_has_the_permissions_of_the_groups(own_users: ControlPlane, kubectl: Kubectl) -> None:
    user = kubectl.as_user(own_users.kubeconfig("jane", ["developers"]))
    assert 'User "jane" cannot create resource "configmaps"' in user.run("create", "configmap", "mine").stderr
    kubectl("create", "rolebinding", "developers", "--clusterrole=edit", "--group=developers")
    kubectl.until(
        "rolebinding/developers", lambda _: user.run("create", "configmap", "mine").returncode == 0, within=10
    )


def test_owned_objects_are_deleted_with_their_owner(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "owner")
    uid = kubectl.json("get", "configmap/owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]}})
    kubectl("delete", "configmap/owner")
    kubectl("wait", "--for=delete", "configmap/owned", "--timeout=30s")
