"""What a user may do whose only right is to create FineTuneJobs, with and without a job policy, on a real API server.

The statements are those of docs/security.md.
"""

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import LABEL_JOB_NAME, LABEL_USABLE
from finetune_api.validation import parse_job
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.clusters.kubernetes import KubernetesCluster, path_of
from finetune_operator.errors import ApiError
from finetune_operator.job_policy.model import JobPolicy
from finetune_operator.job_policy.rules import RULES, Defaults, referenced_objects, violations
from finetune_operator.manifests import JobKey
from operator_process import ACCOUNTS, NAME, OperatorProcess
from policy_cases import CASES, CREDENTIALS, ENDPOINT, IMAGE, POLICY, PolicyCase
from process_support import ROOT, until
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.helm import Helm
from training_setup import fresh_namespace

Manifest = dict[str, Any]
Pod = dict[str, Any]
USER = "jane"
VERBS = "create,get,list,watch,update,patch,delete"
DEFAULTS = Defaults(IMAGE, ENDPOINT, CREDENTIALS)
CHART_VALUES = {
    "crd": {"install": False},
    "trainerImage": dict(zip(("repository", "tag"), IMAGE.rsplit(":", 1), strict=True)),
    "storage": {"endpoint": ENDPOINT, "credentialsSecret": CREDENTIALS},
}
PAGE = (ROOT / "docs/security.md").read_text()


# ---- the admission policy and the operator ---------------------------------------------------------------------------

PROBE = make_job("probe", workers={"priorityClassName": "not-allowed"})


@dataclass(frozen=True)
class Admission:
    """The admission policy of a job policy, in a namespace of its own."""

    kubectl: Kubectl
    policy: Manifest
    release: str


@pytest.fixture(scope="module")
def admissions(
    control_plane: ControlPlane | ExistingCluster, admin: Path, helm: Helm
) -> Iterator[dict[str, Admission]]:
    """By the JSON of each policy in the table of cases."""
    texts = sorted({json.dumps(case.policy, sort_keys=True) for case in CASES.values()})
    with ExitStack() as stack:
        found = {}
        for number, text in enumerate(texts):
            namespace = stack.enter_context(fresh_namespace(control_plane))
            # A field with which every policy refuses the probe; no other case sets it.
            policy = {"priorityClasses": [], **json.loads(text)}
            values = CHART_VALUES | {"namespaces": [namespace], "jobPolicy": policy | {"admission": {"create": True}}}
            release = f"{namespace}-{number}"
            objects = [one for (kind, _), one in helm.render(values, release).items() if "Admission" in kind]
            control_plane.kubectl.apply(*objects)
            kinds = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects]
            stack.callback(control_plane.kubectl, "delete", *kinds, "--wait=false")
            name = objects[0]["metadata"]["name"]
            found[text] = Admission(control_plane.kubectl.within(namespace), policy, name)
        for admission in found.values():
            until(lambda one=admission: is_refused(one, PROBE), within=60, what="the admission policy is in effect")
        yield found


def is_refused(admission: Admission, job: Manifest) -> bool:
    return bool(admission.kubectl.refusal({**job, "metadata": {"name": job["metadata"]["name"]}}))


def test_the_api_server_finds_no_mistake_in_the_admission_policy(admissions: dict[str, Admission]) -> None:
    for admission in admissions.values():
        resource = f"validatingadmissionpolicy/{admission.release}"

        def is_checked(found: Manifest) -> bool:
            return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])

        checked = admission.kubectl.until(resource, is_checked, within=60)
        assert checked["status"].get("typeChecking", {}).get("expressionWarnings", []) == []


def test_the_api_server_and_the_operator_refuse_the_same_jobs(admissions: dict[str, Admission], admin: Path) -> None:
    async def verdicts() -> dict[str, str]:
        server = await ApiServer.connect(admin)
        try:
            found = await asyncio.gather(*(refusal(server, case) for case in CASES.values()))
        finally:
            await server.close()
        return dict(zip(CASES, found, strict=True))

    async def refusal(server: ApiServer, case: PolicyCase) -> str:
        namespace = admissions[json.dumps(case.policy, sort_keys=True)].kubectl.namespace
        job = make_job("case", namespace=namespace, **case.spec)
        try:
            await server.request("POST", path_of(job["apiVersion"], "finetunejobs", namespace), job, dryRun="All")
        except ApiError as error:
            return str(error)
        return ""

    refused_by_server = asyncio.run(verdicts())
    wrong = {}
    for name, case in CASES.items():
        spec = parse_job(make_job(**case.spec)).spec
        policy = JobPolicy.model_validate(case.policy)
        shared = [rule for rule in RULES if rule.is_in_admission_policy]
        paths = {re.sub(r"\[\d+]", "[]", violation.path) for violation in violations(spec, policy, DEFAULTS, shared)}
        answer = refused_by_server[name]
        agrees = any(path in answer for path in paths) if paths else answer == ""
        if not agrees or bool(violations(spec, policy, DEFAULTS)) != bool(case.refused):
            wrong[name] = (paths, answer)
    assert wrong == {}


def test_a_refusal_has_what_is_allowed_and_the_fix(admissions: dict[str, Admission]) -> None:
    admission = admissions[json.dumps(POLICY, sort_keys=True)]
    job = make_job("case", namespace=admission.kubectl.namespace, workers={"serviceAccountName": "admin"})
    refused = admission.kubectl.run("apply", "-f", "-", stdin=json.dumps(job))
    assert refused.returncode != 0
    assert (
        "spec.workers.serviceAccountName must be a service account in serviceAccounts of the job policy (trainer); use "
        "one of these, or ask an administrator to add it"
    ) in refused.stderr


def test_an_update_is_refused_only_if_it_changes_the_field(
    control_plane: ControlPlane | ExistingCluster, admin: Path, helm: Helm, namespace: str
) -> None:
    kubectl = control_plane.kubectl.within(namespace)
    kubectl.apply(make_job("earlier", namespace=namespace, workers={"image": "earlier.example/any:1", "nodes": 2}))
    values = CHART_VALUES | {"namespaces": [namespace], "jobPolicy": POLICY | {"admission": {"create": True}}}
    objects = [one for (kind, _), one in helm.render(values, namespace).items() if "Admission" in kind]
    kubectl.apply(*objects)
    try:
        probe = {**PROBE, "metadata": {"name": "probe"}}
        until(lambda: kubectl.refusal(probe), within=60, what="the admission policy is in effect")

        def patched(**workers: Any) -> str:
            patch = {"spec": {"workers": workers, "suspend": True}}
            return kubectl.run("patch", "ftj/earlier", "--type=merge", "-p", json.dumps(patch)).stderr

        assert patched() == ""
        assert patched(nodes=4) == ""
        assert "spec.workers.image must be" in patched(image="earlier.example/any:2")
        assert patched(image="registry.example.com/team/trainer:1") == ""
        assert "spec.workers.image must be" in patched(image="earlier.example/any:1")
    finally:
        kubectl("delete", *(f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects), "--wait=false")


# ---- the statements of docs/security.md ------------------------------------------------------------------------------

STRICT: dict[str, Any] = {
    "images": [],
    "serviceAccounts": [],
    "priorityClasses": [],
    "tolerationKeys": [],
    "storageEndpoints": [],
    "variables": ["ALLOWED", "ALLOWED_*"],
    "deniedVariables": [],
    "hostAccess": [],
    "volumeSources": ["configMap", "secret", "projected", "persistentVolumeClaim", "ephemeral"],
    "runtimeClasses": [],
    "schedulers": [],
    "queues": [],
    "labels": [],
    "annotations": [],
    "requireLabelOnSecrets": True,
    "requireLabelOnVolumeClaims": True,
}
"""A variable is allowed, so that its source can be refused."""
PRIVATE, USABLE = "private", "usable"
"""Names of an object of each kind without and with the label."""
PRIORITY = "tenancy-high"
RUNTIME = "tenancy-runtime"
APPARMOR = "container.apparmor.security.beta.kubernetes.io/trainer"


def container(pod: Pod) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def environment(pod: Pod) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(pod)["env"]}


def volumes(pod: Pod) -> str:
    return json.dumps(pod["spec"]["volumes"])


def in_prepare(**settings: Any) -> dict[str, Any]:
    return {"stages": {"prepare": settings}}


def volume(source: str, **content: Any) -> dict[str, Any]:
    return in_prepare(volumes=[{"name": "extra", source: content}])


def extra(pod: Pod) -> dict[str, Any]:
    (only,) = [one for one in pod["spec"]["volumes"] if one["name"] == "extra"]
    return {name: content for name, content in only.items() if name != "name"}


HIDING = {
    "volumes": [{"name": "extra", "configMap": {"name": USABLE}}],
    "volumeMounts": [{"name": "extra", "mountPath": "/usr/lib/python3"}],
}
COPY = {
    "accessModes": ["ReadWriteOnce"],
    "resources": {"requests": {"storage": "1Gi"}},
    "dataSource": {"kind": "PersistentVolumeClaim", "name": PRIVATE},
}
ANTI_AFFINITY = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}}
        ]
    }
}


def set_variable(name: str, **source: Any) -> dict[str, Any]:
    return {"workers": {"env": [{"name": name, **(source or {"value": "x"})}]}}


@dataclass(frozen=True)
class JobAttempt:
    """A job that does it, and what its pod shows then."""

    spec: dict[str, Any]
    shows: Callable[[Pod], Any] = lambda _: True
    refused: str = ""
    """Text of the refusal, of the API server or of the operator."""


@dataclass(frozen=True)
class PodProperty:
    """Something that no pod has: a job starts, and its pod shows that it is prevented."""

    prevented: Callable[[Pod], Any]


@dataclass(frozen=True)
class Command:
    """A command of kubectl that the API server forbids."""

    arguments: tuple[str, ...]
    manifest: Manifest | None = field(default=None)


def reference(name: str) -> dict[str, Any]:
    return set_variable("ALLOWED", valueFrom={"secretKeyRef": {"name": name, "key": "k"}})


OTHER_POD: Manifest = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "own"},
    "spec": {"containers": [{"name": "c", "image": "x"}]},
}

ACTIONS: dict[str, JobAttempt | PodProperty | Command] = {
    "run any image in pods": JobAttempt(
        {"workers": {"image": "evil.example/any:1"}},
        lambda pod: container(pod)["image"] == "evil.example/any:1",
        "spec.workers.image must be",
    ),
    "load code that is not in the image with a variable such as `LD_PRELOAD`": JobAttempt(
        set_variable("LD_PRELOAD"), lambda pod: environment(pod)["LD_PRELOAD"] == "x", "a variable that loads code"
    ),
    "load code that is not in the image from a volume that hides its files": JobAttempt(
        in_prepare(**HIDING),
        lambda pod: "/usr/lib/python3" in [mount["mountPath"] for mount in container(pod)["volumeMounts"]],
        "spec.stages.prepare.volumeMounts[0].mountPath must be a path in a folder without code",
    ),
    "run pods as any service account of the namespace": JobAttempt(
        {"workers": {"serviceAccountName": PRIVATE}},
        lambda pod: pod["spec"]["serviceAccountName"] == PRIVATE,
        "spec.workers.serviceAccountName must be",
    ),
    "preempt other pods with any PriorityClass": JobAttempt(
        {"workers": {"priorityClassName": PRIORITY}},
        lambda pod: pod["spec"]["priority"] == 1000,
        "spec.workers.priorityClassName must be",
    ),
    "run pods on nodes with any taint": JobAttempt(
        {"stages": {"prepare": {"tolerations": [{"operator": "Exists"}]}}},
        lambda pod: {"operator": "Exists"} in pod["spec"]["tolerations"],
        "spec.stages.prepare.tolerations[0].key must be",
    ),
    "send data, models and signed requests to any address": JobAttempt(
        {"storage": {"endpoint": "https://evil.example"}}, refused="spec.storage.endpoint must be"
    ),
    "send parameters and metrics to any address": JobAttempt(
        {"tracking": {"mlflow": {"trackingUri": "https://evil.example", "experiment": "topics"}}},
        refused="spec.tracking.mlflow.trackingUri must be",
    ),
    "redirect requests of the trainer with a variable such as `HTTPS_PROXY`": JobAttempt(
        set_variable("HTTPS_PROXY"),
        lambda pod: environment(pod)["HTTPS_PROXY"] == "x",
        "a variable that redirects requests",
    ),
    "set any variable that the operator does not set": JobAttempt(
        set_variable("OTHER"),
        lambda pod: environment(pod)["OTHER"] == "x",
        "spec.workers.env[0].name must be a variable",
    ),
    "set variables with any names from a Secret or ConfigMap": JobAttempt(
        in_prepare(envFrom=[{"configMapRef": {"name": USABLE}}]),
        lambda pod: container(pod)["envFrom"] == [{"configMapRef": {"name": USABLE}}],
        "spec.stages.prepare.envFrom[0].prefix must be the beginning of names in variables",
    ),
    "read any Secret of the namespace in a pod": JobAttempt(
        reference(PRIVATE),
        lambda pod: environment(pod)["ALLOWED"]["secretKeyRef"]["name"] == PRIVATE,
        "spec.workers.env[0].valueFrom.secretKeyRef.name must name a Secret with the label",
    ),
    "mount any Secret of the namespace": JobAttempt(
        volume("secret", secretName=PRIVATE),
        lambda pod: extra(pod)["secret"]["secretName"] == PRIVATE,
        "spec.stages.prepare.volumes[0].secret.secretName must name a Secret with the label",
    ),
    "take variables from any Secret of the namespace": JobAttempt(
        in_prepare(envFrom=[{"prefix": "ALLOWED_", "secretRef": {"name": PRIVATE}}]),
        lambda pod: container(pod)["envFrom"][0]["secretRef"] == {"name": PRIVATE},
        "spec.stages.prepare.envFrom[0].secretRef.name must name a Secret with the label",
    ),
    "use any Secret of the namespace as credentials of object storage": JobAttempt(
        {"storage": {"credentialsSecret": PRIVATE}},
        lambda pod: f'"secret": {{"name": "{PRIVATE}"}}' in volumes(pod),
        "spec.storage.credentialsSecret must name a Secret with the label",
    ),
    "pull images with any Secret of the namespace": JobAttempt(
        {"workers": {"imagePullSecrets": [PRIVATE]}},
        lambda pod: pod["spec"]["imagePullSecrets"] == [{"name": PRIVATE}],
        "spec.workers.imagePullSecrets[0] must name a Secret with the label",
    ),
    "read and write any PersistentVolumeClaim of the namespace": JobAttempt(
        {"workers": {"cache": {"claimName": PRIVATE}}},
        lambda pod: f'"persistentVolumeClaim": {{"claimName": "{PRIVATE}"}}' in volumes(pod),
        "spec.workers.cache.claimName must name a PersistentVolumeClaim with the label",
    ),
    "mount any PersistentVolumeClaim of the namespace at another path": JobAttempt(
        volume("persistentVolumeClaim", claimName=PRIVATE),
        lambda pod: extra(pod) == {"persistentVolumeClaim": {"claimName": PRIVATE}},
        "spec.stages.prepare.volumes[0].persistentVolumeClaim.claimName must name a PersistentVolumeClaim",
    ),
    "copy any PersistentVolumeClaim of the namespace, with a new claim": JobAttempt(
        volume("ephemeral", volumeClaimTemplate={"spec": COPY}),
        lambda pod: extra(pod)["ephemeral"]["volumeClaimTemplate"]["spec"]["dataSource"]["name"] == PRIVATE,
        "spec.stages.prepare.volumes[0].ephemeral.volumeClaimTemplate.spec must not have the content of another volume",
    ),
    "mount volumes of any CSI driver or NFS server": JobAttempt(
        in_prepare(
            volumes=[
                {"name": "extra", "csi": {"driver": "driver.example"}},
                {"name": "other", "nfs": {"server": "evil.example", "path": "/"}},
            ]
        ),
        lambda pod: extra(pod)["csi"]["driver"] == "driver.example" and '"nfs"' in volumes(pod),
        "spec.stages.prepare.volumes[0] must have a source in volumeSources",
    ),
    "use the network or files of the node, or the capability `IPC_LOCK`": JobAttempt(
        in_prepare(hostNetwork=True, capabilities=["IPC_LOCK"], volumes=[{"name": "extra", "hostPath": {"path": "/"}}]),
        lambda pod: (
            pod["spec"]["hostNetwork"]
            and extra(pod)["hostPath"]["path"] == "/"
            and container(pod)["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        ),
        "spec.stages.prepare must have only access to the node that is in hostAccess",
    ),
    "turn off AppArmor for the container": JobAttempt(
        in_prepare(annotations={APPARMOR: "unconfined"}),
        lambda pod: pod["metadata"]["annotations"][APPARMOR] == "unconfined",
        "must not have an annotation that turns off AppArmor",
    ),
    "get an API token into a pod": JobAttempt(
        volume("projected", sources=[{"serviceAccountToken": {"path": "token"}}]),
        lambda pod: extra(pod)["projected"]["sources"][0]["serviceAccountToken"]["path"] == "token",
        "spec.stages.prepare.volumes[0].projected.sources[0] must have a source without credentials",
    ),
    "run pods with any RuntimeClass": JobAttempt(
        in_prepare(runtimeClassName=RUNTIME),
        lambda pod: pod["spec"]["runtimeClassName"] == RUNTIME,
        "spec.stages.prepare.runtimeClassName must be a RuntimeClass in",
    ),
    "choose any scheduler": JobAttempt(
        in_prepare(schedulerName="other"),
        lambda pod: pod["spec"]["schedulerName"] == "other",
        "spec.stages.prepare.schedulerName must be a scheduler in",
    ),
    "queue trainings in any LocalQueue of the namespace": JobAttempt(
        {"workers": {"queue": "others"}},
        lambda pod: bool(pod["spec"]),  # of the prepare stage, which is not queued: the job was accepted
        "spec.workers.queue must be a queue in",
    ),
    "add labels to pods, which Services, NetworkPolicies and webhooks select": JobAttempt(
        in_prepare(labels={"app": "proxy"}),
        lambda pod: pod["metadata"]["labels"]["app"] == "proxy",
        "spec.stages.prepare.labels must have only labels in",
    ),
    "add annotations to pods, on which other controllers act": JobAttempt(
        in_prepare(annotations={"sidecar.istio.io/inject": "true"}),
        lambda pod: pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "true",
        "spec.stages.prepare.annotations must have only annotations in",
    ),
    "read any ConfigMap of the namespace in a pod": JobAttempt(
        set_variable("ALLOWED", valueFrom={"configMapKeyRef": {"name": PRIVATE, "key": "k"}}),
        lambda pod: environment(pod)["ALLOWED"]["configMapKeyRef"]["name"] == PRIVATE,
    ),
    "select nodes by their labels": JobAttempt(
        {"stages": {"prepare": {"nodeSelector": {"pool": "other"}}}},
        lambda pod: pod["spec"]["nodeSelector"] == {"pool": "other"},
    ),
    "keep pods of others off nodes with a rule of anti-affinity": JobAttempt(
        in_prepare(affinity=ANTI_AFFINITY), lambda pod: pod["spec"]["affinity"] == ANTI_AFFINITY
    ),
    "request any amount of CPU and memory, and any number of GPUs and nodes": JobAttempt(
        {
            "workers": {"nodes": 16, "gpusPerNode": 1},
            "stages": {"prepare": {"resources": {"requests": {"cpu": "1000", "memory": "10Ti"}}}},
        },
        lambda pod: container(pod)["resources"]["requests"]["memory"] == "10Ti",
    ),
    "read and write every bucket that the credentials of the pods may use": JobAttempt(
        {"data": {"train": [{"uri": "s3://others/data.jsonl"}]}, "output": {"uri": "s3://others/runs"}}
    ),
    "train any model of the hub": JobAttempt({"model": {"uri": "hf://organization/model"}}),
    "pass options to DeepSpeed": JobAttempt({"deepspeed": {"config": {"steps_per_print": 7}}}),
    "set variables that the operator sets, such as `HOME` and `RANK`": JobAttempt(
        set_variable("HOME"), refused="name must not be a variable that the operator sets"
    ),
    "name an object of another namespace": JobAttempt(
        reference("kube-system/other"), refused="spec.workers.env[0].valueFrom.secretKeyRef.name: Invalid value"
    ),
    "run as root or as a privileged container": PodProperty(
        lambda pod: (
            pod["spec"]["securityContext"]["runAsNonRoot"]
            and container(pod)["securityContext"]["allowPrivilegeEscalation"] is False
            and not container(pod)["securityContext"].get("privileged")
        )
    ),
    "create jobs in another namespace with `kubectl`": Command(
        ("create", "-f", "-", "--namespace=default"), make_job()
    ),
    "read Secrets with `kubectl`": Command(("get", "secrets")),
    "create pods with `kubectl`": Command(("create", "-f", "-"), OTHER_POD),
    "read logs of pods with `kubectl`": Command(("logs", "any")),
    "change the configuration of an attempt with `kubectl`": Command(
        ("patch", "configmap/any", "--type=merge", "-p", '{"data": {}}')
    ),
    "write the status of a job with `kubectl`": Command(
        ("patch", "ftj/any", "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Succeeded"}}')
    ),
}


@dataclass(frozen=True)
class Statement:
    """A line of the table: whether the user can do it, and the field of the policy that refuses it."""

    action: str
    open: str
    limited: str
    field: str = ""


def statements() -> list[Statement]:
    section = PAGE.split("\n## What a user can do\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| ") and not line.startswith("| action |")
    ]
    found = []
    for action, without, limited in rows:
        verdict, _, named = limited.removesuffix(" |").partition(": ")
        found.append(Statement(action.removeprefix("| "), without, verdict, named.strip("`")))
    return found


STATEMENTS = statements()


@dataclass(frozen=True)
class Tenant:
    """A namespace with an operator, and objects that jobs may want to use."""

    kubectl: Kubectl
    """Of an administrator."""

    def as_user(self, *arguments: str, stdin: str | None = None) -> tuple[int, str]:
        done = self.kubectl.run(*arguments, f"--as={USER}", stdin=stdin)
        return done.returncode, done.stderr

    def pods(self, job: str) -> list[Pod]:
        found: list[Pod] = self.kubectl.json("get", "pods", "-l", f"{LABEL_JOB_NAME}={job}-r1-prepare-a1")["items"]
        return found

    def refusal(self, job: str) -> str:
        """Message of the condition Accepted if it is False."""
        entries = self.kubectl.json("get", f"ftj/{job}").get("status", {}).get("conditions", [])
        return next((one["message"] for one in entries if (one["type"], one["status"]) == ("Accepted", "False")), "")


def objects_of(namespace: str) -> list[Manifest]:
    """What an administrator has created in a namespace, each object once without and once with the label."""
    manifests: list[Manifest] = []
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    for name in (PRIVATE, USABLE):
        metadata = {"name": name, "labels": {LABEL_USABLE: "true"} if name == USABLE else {}}
        manifests += [
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"k": "v"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": "v"}},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        ]
    return manifests


@pytest.fixture(scope="module")
def tenants(
    control_plane: ControlPlane | ExistingCluster, admin: Path, helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Tenant]]:
    """`open`: a namespace whose operator has no policy; `limited`: one with the strict policy and its permissions."""
    high = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": PRIORITY},
        "value": 1000,
    }
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": RUNTIME},
        "handler": "runc",
    }
    with ExitStack() as stack:
        control_plane.kubectl.apply(high, runtime)
        stack.callback(control_plane.kubectl, "delete", f"priorityclass/{PRIORITY}", f"runtimeclass/{RUNTIME}")
        found = {}
        for name in ("open", "limited"):
            namespace = stack.enter_context(fresh_namespace(control_plane))
            kubectl = control_plane.kubectl.within(namespace)
            kubectl("create", "role", USER, f"--verb={VERBS}", "--resource=finetunejobs.finetune.dev")
            kubectl("create", "rolebinding", USER, f"--role={USER}", f"--user={USER}")
            kubectl.apply(*objects_of(namespace))
            folder = tmp_path_factory.mktemp(name)
            arguments = [f"--namespace={namespace}", f"--trainer-image={IMAGE}", f"--credentials-secret={CREDENTIALS}"]
            if name == "limited":
                arguments.append(f"--policy={limited_operator(kubectl, helm, folder)}")
            operator = OperatorProcess(control_plane, folder, *arguments)
            stack.enter_context(operator)
            found[name] = Tenant(kubectl)
        may = ("auth", "can-i", "create", "ftj")
        for tenant in found.values():
            until(lambda one=tenant: one.as_user(*may)[0] == 0, within=30, what="the user may create jobs")
        yield found


def limited_operator(kubectl: Kubectl, helm: Helm, folder: Path) -> Path:
    """Give the operator of the tests the permissions of the chart, and return the file of its policy."""
    values = CHART_VALUES | {"namespaces": [kubectl.namespace], "jobPolicy": STRICT}
    rendered = helm.render(values)
    binding = rendered["RoleBinding", f"{kubectl.namespace}/{NAME}"]
    binding["subjects"][0]["namespace"] = ACCOUNTS
    kubectl.apply(rendered["Role", f"{kubectl.namespace}/{NAME}"], binding)
    path = folder / "policy.yaml"
    path.write_text(rendered["ConfigMap", f"{NAME}-job-policy"]["data"]["policy.yaml"])
    return path


@pytest.fixture(scope="module")
def tried(tenants: dict[str, Tenant]) -> dict[tuple[str, str], str]:
    """(tenant, action) -> error of kubectl, after the user has tried everything in both namespaces."""
    found = {}
    for name, tenant in tenants.items():
        for number, (action, what) in enumerate(ACTIONS.items()):
            if isinstance(what, Command):
                stdin = json.dumps(without_namespace(what.manifest)) if what.manifest else None
                status, error = tenant.as_user(*what.arguments, stdin=stdin)
            else:
                spec = what.spec if isinstance(what, JobAttempt) else {}
                job = without_namespace(make_job(f"try-{number}", **spec))
                status, error = tenant.as_user("create", "-f", "-", stdin=json.dumps(job))
            found[name, action] = error if status else ""
    return found


def without_namespace(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {"name": manifest["metadata"]["name"]}}


def test_every_statement_of_the_page_has_a_case_and_every_case_a_statement() -> None:
    assert [statement.action for statement in STATEMENTS] == list(ACTIONS)
    assert {verdict for one in STATEMENTS for verdict in (one.open, one.limited)} == {"can", "cannot"}


@pytest.mark.parametrize("name", ["open", "limited"])
@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.action[:40])
def test_the_user_can_do_what_the_page_says_and_nothing_else(
    tenants: dict[str, Tenant], tried: dict[tuple[str, str], str], statement: Statement, name: str
) -> None:
    tenant, action = tenants[name], ACTIONS[statement.action]
    error, can = tried[name, statement.action], getattr(statement, name) == "can"
    job = f"try-{list(ACTIONS).index(statement.action)}"
    match action:
        case Command():
            assert not can
            assert "Forbidden" in error or "forbidden" in error
        case PodProperty(prevented):
            assert (can, error) == (False, "")
            (pod,) = until(lambda: tenant.pods(job), within=60, what=f"{job} has a pod")
            assert prevented(pod)
        case JobAttempt(_, shows) if can:
            assert error == ""
            (pod,) = until(lambda: tenant.pods(job), within=60, what=f"{job} has a pod")
            assert shows(pod)
        case JobAttempt(refused=words):
            assert words
            message = error or until(lambda: tenant.refusal(job), within=60, what=f"{job} is refused")
            assert words in message
            assert tenant.pods(job) == []


@pytest.mark.parametrize(
    "statement", [one for one in STATEMENTS if one.field], ids=lambda statement: statement.action[:40]
)
def test_the_field_that_the_page_names_refuses_the_action_alone(statement: Statement) -> None:
    action = ACTIONS[statement.action]
    assert isinstance(action, JobAttempt)
    policy = JobPolicy.model_validate({statement.field: STRICT[statement.field]})
    spec = parse_job(make_job(**action.spec)).spec
    assert violations(spec, policy, DEFAULTS) or referenced_objects(spec, policy, DEFAULTS)


def test_objects_with_the_label_can_be_used(tenants: dict[str, Tenant]) -> None:
    tenant = tenants["limited"]
    spec = {
        "storage": {"credentialsSecret": USABLE},
        "workers": {"imagePullSecrets": [USABLE], "cache": {"claimName": USABLE}, **reference(USABLE)["workers"]},
    }
    job = without_namespace(make_job("labeled", **spec))
    assert tenant.as_user("create", "-f", "-", stdin=json.dumps(job)) == (0, "")
    until(lambda: tenant.pods("labeled"), within=60, what="the job has a pod")
    assert tenant.refusal("labeled") == ""


def test_a_job_starts_after_its_missing_secret_is_created_and_labeled(tenants: dict[str, Tenant]) -> None:
    tenant = tenants["limited"]
    job = without_namespace(make_job("waiting", storage={"credentialsSecret": "later"}))
    assert tenant.as_user("create", "-f", "-", stdin=json.dumps(job)) == (0, "")
    missing = until(lambda: tenant.refusal("waiting"), within=60, what="it is refused")
    assert f'the label {LABEL_USABLE}: "true", which the job policy requires, and later does not exist' in missing
    tenant.kubectl("create", "secret", "generic", "later")
    tenant.kubectl("label", "secret", "later", f"{LABEL_USABLE}=true")
    until(lambda: tenant.pods("waiting"), within=90, what="the job has a pod")


def test_the_content_of_a_secret_is_not_requested(tenants: dict[str, Tenant], admin: Path) -> None:
    # `kubectl apply` would also write the content into an annotation.
    tenants["limited"].kubectl("create", "secret", "generic", "plain", "--from-literal=k=hidden-value")

    @dataclass
    class Recorder:
        server: ApiServer
        answers: list[Manifest] = field(default_factory=list)

        async def request(self, *arguments: Any, **options: Any) -> Manifest:
            self.answers.append(await self.server.request(*arguments, **options))
            return self.answers[-1]

    async def answers() -> list[Manifest]:
        server = await ApiServer.connect(admin)
        recorder, key = Recorder(server), JobKey(tenants["limited"].kubectl.namespace, "any")
        cluster = KubernetesCluster(recorder)  # type: ignore[arg-type]
        try:
            assert await cluster.read_labels(key, "Secret", "plain") == {}
            assert await cluster.read_labels(key, "PersistentVolumeClaim", "absent") is None
        finally:
            await server.close()
        return recorder.answers

    (answer,) = asyncio.run(answers())
    assert answer["kind"] == "PartialObjectMetadata"
    assert "data" not in answer
    assert not {"hidden-value", base64.b64encode(b"hidden-value").decode()} & set(re.split('"', json.dumps(answer)))
