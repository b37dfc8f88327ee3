"""Jobs that cannot work are reported with the fix, and cause almost no load on the API server.

One operator serves a namespace per bad input, behind a proxy that counts its writes after its first response.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from fault_proxy import FaultProxy
from job_namespace import training_ends
from loop_thread import LoopThread, running_kubelet
from objects import Objects
from operator_process import CRD, OperatorProcess
from process_support import until
from simulated_kubelet import FOREVER
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from training_setup import fresh_namespace

Manifest = dict[str, Any]
NAME = "bad"
WATCHED_SECONDS = 15.0
MOST_WRITES = 4
"""Within that time: a rejected request is retried every 30 seconds, with a ConfigMap, a Service and a Job."""


@dataclass(frozen=True)
class BadInput:
    """A cause that prevents the completion of a job, and the expected report."""

    condition: str
    status: str
    reason: str
    words: tuple[str, ...]
    spec: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Objects, Kubectl], None] = lambda *_: None
    """Creates objects in the namespace before the job."""
    stuck: str = ""
    """Message of the kubelet for pods that it cannot start."""


def quota(**hard: str) -> Callable[[Objects, Kubectl], None]:
    def make(objects: Objects, _kubectl: Kubectl) -> None:
        limits = {name.replace("_", "/"): value for name, value in hard.items()}
        objects.create("resourcequotas", {"metadata": {"name": "none"}, "spec": {"hard": limits}})
        until(lambda: "hard" in (objects.get("resourcequotas", "none") or {})["status"], within=60, what="the quota")

    return make


def policy(objects: Objects, kubectl: Kubectl) -> None:
    """A rule of the cluster that allows no Jobs in the namespace, like a missing permission."""
    kubectl.apply(*no_jobs_policy(objects.namespace))
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": pod()}}
    until(lambda: "No Jobs here" in (kubectl.refusal(job) or ""), within=60, what="the policy")


def no_jobs_policy(namespace: str) -> tuple[Manifest, Manifest]:
    kind = {"apiVersion": "admissionregistration.k8s.io/v1"}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    rules = {
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [
            {"expression": "false", "message": "No Jobs here: ask the platform team", "reason": "Forbidden"}
        ],
    }
    name = {"name": f"no-jobs-{namespace}"}
    binding = {"policyName": name["name"], "validationActions": ["Deny"], "matchResources": here}
    return (
        {**kind, "kind": "ValidatingAdmissionPolicy", "metadata": name, "spec": rules},
        {**kind, "kind": "ValidatingAdmissionPolicyBinding", "metadata": name, "spec": binding},
    )


def pod() -> Manifest:
    return {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}


def strange_job(objects: Objects, _kubectl: Kubectl) -> None:
    job = {"metadata": {"name": f"{NAME}-r1-prepare-a1"}, "spec": {"suspend": True, "template": pod()}}
    objects.create("jobs", job)


def newer_status(objects: Objects, _kubectl: Kubectl) -> None:
    """A status written by a newer operator version."""
    objects.create("finetunejobs", make_job(NAME, namespace=objects.namespace))
    job = objects.get("finetunejobs", NAME)
    assert job is not None
    ready = {"type": "Ready", "status": "True", "reason": "Entangled", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    job["status"] = {"run": {"number": 3}, "qubits": 9, "conditions": [ready]}
    objects.write_status("finetunejobs", job)


INPUTS = {
    "rules": BadInput(
        "Accepted",
        "False",
        "InvalidSpec",
        ("spec.training.microBatchSize must divide the 16 examples", "not 5; write 4"),
        spec={"training": {"globalBatchSize": 16, "microBatchSize": 5}},
    ),
    "newer spec": BadInput(
        "Accepted",
        "False",
        "InvalidSpec",
        ("spec.training.warpSpeed: unknown field",),
        spec={"training": {"warpSpeed": 9}},
    ),
    "newer status": BadInput(
        "Accepted",
        "False",
        "InvalidSpec",
        ("status.conditions[0].reason must be one of", 'not "Entangled"', "a newer operator"),
        before=newer_status,
    ),
    "secret": BadInput(
        "Ready",
        "False",
        "WaitingForPods",
        ("0 of 1 pods of bad-r1-prepare-a1 are running", 'secret "absent" not found'),
        spec={"storage": {"credentialsSecret": "absent"}},
        stuck='MountVolume.SetUp failed for volume "credentials" : secret "absent" not found',
    ),
    "pod quota": BadInput(
        "Ready",
        "False",
        "WaitingForPods",
        ("0 of 1 pods of bad-r1-prepare-a1 are running", "exceeded quota: none", "limited: pods=0"),
        before=quota(pods="0"),
    ),
    "job quota": BadInput(
        "Ready", "False", "CannotCreate", ("exceeded quota: none",), before=quota(**{"count_jobs.batch": "0"})
    ),
    "job policy": BadInput("Ready", "False", "CannotCreate", ("No Jobs here: ask the platform team",), before=policy),
    "misspelt affinity": BadInput(
        "Ready",
        "False",
        "CannotCreate",
        ('unknown field "spec.template.spec.affinity.nodeAffinity.required"',),
        spec={"stages": {"prepare": {"affinity": {"nodeAffinity": {"required": {}}}}}},
    ),
    "strange job": BadInput(
        "Ready",
        "False",
        "ChildConflict",
        ("/bad-r1-prepare-a1 exists and belongs to another owner; delete it",),
        before=strange_job,
    ),
}


@dataclass(frozen=True)
class Report:
    """The result of one bad input."""

    status: Manifest
    conditions: dict[str, Manifest]
    writes: list[str]
    """Writes during the observation."""


@pytest.fixture(scope="module")
def setup(control_plane: ControlPlane, admin: Path) -> Iterator["TrainingSetup"]:
    with LoopThread() as loop:
        yield TrainingSetup(control_plane, admin, loop)


@dataclass
class TrainingSetup:
    """Namespaces on demand."""

    control: ControlPlane
    admin: Path
    loop: LoopThread

    @contextmanager
    def namespace(self, stuck: str = "") -> Iterator[tuple[Objects, Kubectl]]:
        """A namespace with a kubelet."""
        with (
            fresh_namespace(self.control) as name,
            running_kubelet(self.loop, self.admin, name) as kubelet,
            closing(Objects(self.loop, self.admin, name)) as objects,
        ):
            kubelet.scripts[NAME], kubelet.stuck = training_ends(FOREVER), stuck
            yield objects, self.control.kubectl.within(name)


@pytest.fixture(scope="module")
def reported(setup: TrainingSetup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """By name of the input. All run concurrently, because the test measures elapsed time."""
    with ExitStack() as stack:
        places = {name: stack.enter_context(setup.namespace(bad.stuck)) for name, bad in INPUTS.items()}
        stack.enter_context(newer_crd(setup.control.kubectl, places["newer spec"][0]))
        for name, place in places.items():
            INPUTS[name].before(*place)
        served = [f"--namespace={objects.namespace}" for objects, _ in places.values()]
        operator = OperatorProcess(setup.control, tmp_path_factory.mktemp("operator"), *served, "--progress-seconds=1")
        proxy = stack.enter_context(FaultProxy(operator.kubeconfig))
        operator.start(server=proxy.server)
        stack.push(operator.__exit__)
        operator.ready()
        for name, (objects, _) in places.items():
            if objects.get("finetunejobs", NAME) is None:
                objects.create("finetunejobs", make_job(NAME, namespace=objects.namespace, **INPUTS[name].spec))
        for name, (objects, _) in places.items():
            until(lambda name=name, objects=objects: answered(objects, INPUTS[name]), within=120, what=name)
        for objects, _ in places.values():
            objects.annotate("finetunejobs", NAME, looked="again")
        since = time.monotonic()
        time.sleep(WATCHED_SECONDS)
        found = {name: outcome(objects, proxy, since) for name, (objects, _) in places.items()}
        assert operator.get("/healthz") == (200, "ok")
        yield found


@contextmanager
def newer_crd(kubectl: Kubectl, objects: Objects) -> Iterator[None]:
    """A newer version of our CRD, with fields and values that this operator does not support."""
    place = "/spec/versions/0/schema/openAPIV3Schema/properties"
    reason = f"{place}/status/properties/conditions/items/properties/reason/enum"
    words = json.loads(kubectl("get", "crd", CRD, "-o", "json"))
    for part in reason.strip("/").split("/"):
        words = words[int(part) if part.isdigit() else part]
    fields = [f"{place}/spec/properties/training/properties/warpSpeed", f"{place}/status/properties/qubits"]
    added = [{"op": "add", "path": path, "value": {"type": "integer"}} for path in fields]
    change = [*added, {"op": "remove", "path": reason}]
    kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(change))

    def is_known() -> bool:
        job = make_job("probe", namespace=objects.namespace, suspend=True, training={"warpSpeed": 9})
        objects.create("finetunejobs", job)
        kept = objects.get("finetunejobs", "probe")
        objects.delete("finetunejobs", "probe")
        return kept is not None and "warpSpeed" in kept["spec"]["training"]

    try:
        until(is_known, within=60, what="the newer CRD")
        yield
    finally:
        back = [{"op": "remove", "path": path} for path in fields] + [{"op": "add", "path": reason, "value": words}]
        kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(back))


def answered(objects: Objects, bad: BadInput) -> bool:
    job = objects.get("finetunejobs", NAME)
    entries = (job or {}).get("status", {}).get("conditions", [])
    return any(
        entry["type"] == bad.condition
        and entry["reason"] == bad.reason
        and all(words in entry["message"] for words in bad.words)
        for entry in entries
    )


def outcome(objects: Objects, proxy: FaultProxy, since: float) -> Report:
    job = objects.get("finetunejobs", NAME)
    assert job is not None
    conditions = {entry["type"]: entry for entry in job["status"]["conditions"]}
    writes = [
        f"{call.method} {call.path}"
        for call in proxy.calls
        if call.kind == "write" and call.at >= since and f"/namespaces/{objects.namespace}/" in call.path
    ]
    return Report(job["status"], conditions, writes)


@pytest.mark.parametrize("name", INPUTS)
def test_bad_input_is_reported_and_causes_little_load(reported: dict[str, Report], name: str) -> None:
    bad = INPUTS[name]
    found = reported[name].conditions[bad.condition]
    assert (found["status"], found["reason"]) == (bad.status, bad.reason)
    assert [words for words in bad.words if words not in found["message"]] == [], found["message"]
    assert len(reported[name].writes) <= MOST_WRITES, reported[name].writes


def test_the_status_of_a_newer_operator_is_kept(reported: dict[str, Report]) -> None:
    status = reported["newer status"].status
    assert (status["run"]["number"], status["qubits"]) == (3, 9)
    assert reported["newer status"].conditions["Ready"]["reason"] == "Entangled"


def test_a_namespace_that_is_deleted_during_training_is_removed_with_all_objects(
    setup: TrainingSetup, tmp_path: Path
) -> None:
    with setup.namespace() as (objects, kubectl):
        operator = OperatorProcess(
            setup.control, tmp_path, f"--namespace={objects.namespace}", "--progress-seconds=0.5"
        )
        with FaultProxy(operator.kubeconfig) as proxy, ExitStack() as stack:
            operator.start(server=proxy.server)
            stack.push(operator.__exit__)
            operator.ready()
            objects.create("finetunejobs", make_job(NAME, namespace=objects.namespace))
            until(lambda: f"{NAME}-r1-train-a1" in objects.names("jobs"), within=60, what="it trains")
            kubectl("delete", "namespace", objects.namespace, "--wait=false")
            gone = ("get", "namespace", objects.namespace)
            until(lambda: kubectl.run(*gone).returncode != 0, within=120, what="the namespace is deleted")
            since = time.monotonic()
            time.sleep(WATCHED_SECONDS)
            assert operator.is_running, operator.log_text()
            assert operator.get("/healthz") == (200, "ok")
            assert proxy.count("write", since=since) == 0
