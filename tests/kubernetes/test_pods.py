"""Pods of the test cluster run like on a real one: names, permissions, termination, and the loss of their node."""

import http.server
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testcluster.access import Kubectl, condition
from testcluster.forward import Forward
from testcluster.images import host_claim
from testcluster.pod_manifests import headless_service, indexed_job, python_pod, python_template
from testcluster.pods import PodsCluster
from testcluster.shared_services import answers

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
ASK_THE_API = """
import os, ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=f"{account}/ca.crt")
headers = {"Authorization": "Bearer " + open(f"{account}/token").read()}
for host in (os.environ["KUBERNETES_SERVICE_HOST"], "kubernetes.default.svc"):
    request = urllib.request.Request(f"https://{host}/version", headers=headers)
    print(urllib.request.urlopen(request, context=context, timeout=10).status)
"""
SERVE = """
import http.server, os
os.chdir("/tmp")
open("greeting", "w").write("hello")
print("started")
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
IMPORT = "import torch, transformers, finetune_trainer; print(torch.ones(2).sum().item())"


def is_over(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") in {"Succeeded", "Failed"}


def output(kubectl: Kubectl, pod: str, within: float = 60) -> str:
    kubectl.until(f"pod/{pod}", is_over, within=within, what=f"pod {pod} has terminated")
    return kubectl("logs", pod)


def until_started(kubectl: Kubectl, pod: str) -> None:
    kubectl.until(
        f"pod/{pod}", lambda _: "started" in kubectl.run("logs", pod).stdout, within=60, what=f"{pod} has started"
    )


def terminated(pod: dict[str, Any]) -> Any:
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]


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
def test_a_restricted_namespace_runs_pods_with_minimal_permissions(kubectl: Kubectl) -> None:
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
def test_a_pod_gets_sigterm_and_its_grace_period(kubectl: Kubectl, code: str, status: int, message: str | None) -> None:
    # A finalizer keeps the pod object after its termination.
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
    handler = partial(Quiet, directory=str(tmp_path))
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


def test_a_killed_node_becomes_not_ready_and_returns(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
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


def test_a_node_has_the_gpus_that_it_advertises(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
    pods_cluster.add_gpus("node-a", 4)
    pod = python_pod("greedy", "print('placed')")
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "2"}}
    kubectl.apply(pod)
    assert output(kubectl, "greedy").strip() == "placed"
    assert kubectl.json("get", "pod/greedy")["spec"]["nodeName"] == "node-a"


@pytest.mark.usefixtures("pods_cluster")
def test_a_pod_uses_the_api_with_its_own_service_account(kubectl: Kubectl) -> None:
    kubectl.apply(python_pod("asking", ASK_THE_API))
    assert output(kubectl, "asking").split() == ["200", "200"]


@pytest.mark.usefixtures("pods_cluster")
def test_a_service_is_reachable_from_both_nodes_and_from_this_machine(kubectl: Kubectl) -> None:
    server = python_pod("server", SERVE, nodeName="node-a")
    server["metadata"]["labels"] = {"app": "server"}
    spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]}
    kubectl.apply(server, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": spec})
    until_started(kubectl, "server")
    where = {"WHERE": f"http://server.{kubectl.namespace}/greeting"}
    clients = [python_pod(f"from-{node}", FETCH, env=where, nodeName=node) for node in ("node-a", "node-b")]
    kubectl.apply(*clients)
    assert [output(kubectl, client["metadata"]["name"]).strip() for client in clients] == ["hello", "hello"]
    pod, service = kubectl.json("get", "pod/server")["status"], kubectl.json("get", "service/server")["spec"]
    assert answers(f"http://{pod['podIP']}:8000/greeting")
    assert answers(f"http://{service['clusterIP']}/greeting")


@pytest.mark.usefixtures("pods_cluster")
def test_a_pod_has_this_machines_python_and_its_packages(kubectl: Kubectl) -> None:
    kubectl.apply(python_pod("training", IMPORT))
    assert output(kubectl, "training", within=120).split() == ["2.0"]
