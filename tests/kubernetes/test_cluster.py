"""The test cluster itself: an API that refuses what it should, and pods that run as on a real cluster."""

import http.server
import threading
from pathlib import Path

import pytest

from testcluster.access import Kubectl, condition
from testcluster.binaries import KUBERNETES_VERSION
from testcluster.control_plane import ControlPlane
from testcluster.forward import Forward
from testcluster.images import host_claim
from testcluster.pod_manifests import headless_service, indexed_job, python_pod, python_template
from testcluster.pods import PodsCluster

FIND_PEER = """
import os, socket, time
me = int(os.environ["JOB_COMPLETION_INDEX"])
name = f"ring-{1 - me}.ring"
server = socket.create_server(("0.0.0.0", 2900))
deadline = time.monotonic() + 40
while True:
    try:
        socket.create_connection((name, 2900), timeout=5).close()
        break
    except OSError as error:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
print(f"{me} reached {name}")
server.accept()
"""
LOOK_AROUND = """
import os
try:
    open("/written", "w")
except OSError as error:
    print(f"root file system: {error.strerror}")
print("user", os.getuid())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("seccomp", status["Seccomp"].strip(), "privileges", status["CapEff"].strip(), status["NoNewPrivs"].strip())
"""
END_WELL = """
import signal, sys, time
def stop(*_):
    open("/dev/termination-log", "w").write("saved at step 7")
    sys.exit(12)
signal.signal(signal.SIGTERM, stop)
print("started")
time.sleep(600)
"""
END_BADLY = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('started'); time.sleep(600)"
FETCH = "import os, urllib.request; print(urllib.request.urlopen(os.environ['WHERE'], timeout=10).read().decode())"
SLEEP = "import time; print('started'); time.sleep(600)"


def is_over(pod: dict) -> bool:  # type: ignore[type-arg]
    return pod["status"].get("phase") in {"Succeeded", "Failed"}


def output(kubectl: Kubectl, pod: str, within: float = 60) -> str:
    kubectl.until(f"pod/{pod}", is_over, within=within, what=f"pod {pod} is over")
    return kubectl("logs", pod)


def until_started(kubectl: Kubectl, pod: str) -> None:
    kubectl.until(
        f"pod/{pod}", lambda _: "started" in kubectl.run("logs", pod).stdout, within=60, what=f"{pod} has started"
    )


def terminated(pod: dict) -> dict:  # type: ignore[type-arg]
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]  # type: ignore[no-any-return]


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


@pytest.mark.usefixtures("pods_cluster")
def test_pods_of_a_job_are_on_two_nodes_and_find_each_other_by_name(kubectl: Kubectl) -> None:
    spread = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"ring": "ring"}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [spread]}}
    template = python_template(FIND_PEER, subdomain="ring", affinity=affinity)
    kubectl.apply(headless_service("ring"), indexed_job("ring", template, pods=2))
    kubectl.until("job/ring", lambda job: condition(job, "Complete") == "True", within=60)
    pods = kubectl.json("get", "pods", "--selector=ring=ring")["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-a", "node-b"}
    assert sorted(kubectl("logs", pod["metadata"]["name"]).strip() for pod in pods) == [
        "0 reached ring-1.ring",
        "1 reached ring-0.ring",
    ]


@pytest.mark.usefixtures("pods_cluster")
def test_a_restricted_namespace_runs_pods_that_may_do_nothing_more_than_they_must(kubectl: Kubectl) -> None:
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    assert 'restricted volume type "hostPath"' in (kubectl.refusal(python_pod("plain", LOOK_AROUND)) or "")
    kubectl.apply(*host_claim(kubectl.namespace))
    try:
        kubectl.apply(python_pod("restricted", LOOK_AROUND, claim="host"))
        assert output(kubectl, "restricted").splitlines() == [
            "root file system: Read-only file system",
            "user 1000",
            "seccomp 2 privileges 0000000000000000 1",
        ]
    finally:
        kubectl("delete", "persistentvolume", f"host-{kubectl.namespace}", "--wait=false")


@pytest.mark.usefixtures("pods_cluster")
@pytest.mark.parametrize(("code", "status", "message"), [(END_WELL, 12, "saved at step 7"), (END_BADLY, 137, None)])
def test_a_pod_is_told_to_end_and_has_its_grace(kubectl: Kubectl, code: str, status: int, message: str | None) -> None:
    # A finalizer keeps the pod in sight when it is over.
    pod = python_pod("ending", code, terminationGracePeriodSeconds=3)
    pod["metadata"]["finalizers"] = ["finetune.test/seen"]
    kubectl.apply(pod)
    try:
        until_started(kubectl, "ending")
        kubectl("delete", "pod/ending", "--wait=false")
        ended = terminated(kubectl.until("pod/ending", is_over, within=20))
    finally:
        kubectl("patch", "pod/ending", "--type=json", '--patch=[{"op": "remove", "path": "/metadata/finalizers"}]')
    assert (ended["exitCode"], ended.get("message")) == (status, message)


def test_pods_reach_a_server_of_the_test(pods_cluster: PodsCluster, kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("hello")
    handler = lambda *arguments: Quiet(*arguments, directory=str(tmp_path))  # noqa: E731
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        Forward(pods_cluster.host_address, server.server_port) as forward,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubectl.apply(python_pod("fetch", FETCH, env={"WHERE": f"{forward.endpoint}/greeting"}))
        assert output(kubectl, "fetch").strip() == "hello"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_killed_node_is_found_not_ready_and_comes_back(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
    kubectl.apply(python_pod("victim", SLEEP, nodeName="node-b"))
    until_started(kubectl, "victim")
    pods_cluster.kill_node("node-b")
    try:
        pods_cluster.until_not_ready("node-b")
        pod = kubectl.until("pod/victim", lambda one: "deletionTimestamp" in one["metadata"], within=30)
        assert condition(pod, "DisruptionTarget") == "True"
    finally:
        pods_cluster.restart_node("node-b")
    kubectl.apply(python_pod("after", "print('back')", nodeName="node-b"))
    assert output(kubectl, "after").strip() == "back"


def test_pods_outlive_their_kubelet(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
    kubectl.apply(python_pod("survivor", SLEEP, nodeName="node-a"))
    until_started(kubectl, "survivor")
    before = kubectl.json("get", "pod/survivor")["status"]["containerStatuses"][0]
    pods_cluster.kill_kubelet("node-a")
    pods_cluster.restart_kubelet("node-a")
    after = kubectl.json("get", "pod/survivor")["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_gpus_are_what_a_node_says_it_has(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
    pods_cluster.add_gpus("node-a", 4)
    pod = python_pod("greedy", "print('placed')")
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "2"}}
    kubectl.apply(pod)
    assert output(kubectl, "greedy").strip() == "placed"
    assert kubectl.json("get", "pod/greedy")["spec"]["nodeName"] == "node-a"
