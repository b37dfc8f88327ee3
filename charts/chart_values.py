"""Values of the Helm chart: the models that values.yaml, its comments and values.schema.json are generated from.

`make golden` writes both files. A value exists only if a template or an argument of the operator uses it.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.v1alpha1 import VolumeMount
from finetune_operator.job_policy.model import JobPolicy
from finetune_operator.pod_additions import AddedVariable, AddedVolume
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.service_options import SHORTEST_LEASE_SECONDS, LeaseOptions, ServiceOptions
from finetune_operator.settings import OperatorSettings

_SETTINGS = OperatorSettings()
_PROCESS = ServiceOptions()

_WIDTH = 110
_HEADER = """\
Values of the chart, with their defaults. Generated from charts/chart_values.py. Other keys are refused.
"""
_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$"
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"

Quantity = Annotated[str, Field(pattern=_QUANTITY)] | Annotated[float, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Texts = dict[str, str]


class Values(BaseModel):
    """A level of the values. Unknown keys are errors."""

    model_config = ConfigDict(alias_generator=to_camel, use_attribute_docstrings=True, extra="forbid", title="")


class Image(Values):
    """An image by tag, or by digest."""

    repository: Annotated[str, Field(min_length=1)]
    """Registry and name, without tag."""
    tag: str = ""
    """Empty: the version of the operator, `appVersion` of the chart."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """sha256:...; takes precedence over the tag."""


class OperatorImage(Image):
    """The image of the operator."""

    repository: Annotated[str, Field(min_length=1)] = "finetune-operator"
    """Registry and name, without tag."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Always, IfNotPresent or Never."""


class TrainerImage(Image):
    """The default image of the pods of jobs."""

    repository: Annotated[str, Field(min_length=1)] = "finetune-trainer"
    """Registry and name, without tag."""


class SecretName(Values):
    """A Secret by name."""

    name: Annotated[str, Field(min_length=1)]


class Crd(Values):
    """The CustomResourceDefinition."""

    install: bool = True
    """Install and upgrade the CRD with the release. `helm uninstall` keeps it, and with it all jobs."""


class NamespaceOfRelease(Values):
    """The namespace of the release."""

    create: bool = False
    """Also render the namespace, with Pod Security `restricted`; `helm install` has `--create-namespace`."""


class Rbac(Values):
    """Permissions."""

    create: bool = True
    """Create the operator's roles and bindings. False: create them yourself, as `helm template` shows them."""
    aggregate: bool = True
    """Add FineTuneJobs to the roles view, edit and admin, which users have. Only one release needs to."""


class ServiceAccount(Values):
    """The service account of the operator."""

    create: bool = True
    """False: use the existing service account `name`."""
    name: Annotated[str, Field(pattern=_DNS_NAME)] = ""
    """Empty: the name of the release; the namespace's `default` if it is not created."""
    annotations: Texts = {}
    """Annotations of the service account."""


class Storage(Values):
    """Object storage of jobs that do not set their own (`spec.storage`)."""

    endpoint: str = ""
    """Address without credentials, such as https://s3.example.com. Empty: AWS."""
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = _SETTINGS.storage.region
    """Region of the storage."""
    credentials_secret: Annotated[str, Field(pattern=_DNS_NAME)] = ""
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Empty: the identity of the pod's service account."""


class Grace(Values):
    """Bounds of the time that training pods have for a last save when they are evicted."""

    minimum_seconds: Annotated[int, Field(ge=1)] = _SETTINGS.termination_grace.least_seconds
    """At least this many seconds; more if the measured saves take longer."""
    maximum_seconds: Annotated[int, Field(ge=1)] = _SETTINGS.termination_grace.most_seconds
    """At most this many seconds, for which drains may have to wait."""


class Pods(Values):
    """Settings of the pods of all jobs."""

    ephemeral_storage: Quantity = _SETTINGS.ephemeral_storage
    """Request of ephemeral storage if the job sets none; "0": none."""
    termination_grace: Grace = Grace()
    """Bounds of the time that training pods have for a last save when they are evicted."""
    gang_scheduling: bool = _SETTINGS.gang_scheduling
    """Place the workers of an attempt on nodes together, if the cluster serves PodGroups (docs/operating.md)."""
    volumes: list[AddedVolume] = []
    """Volumes of every pod, such as a certificate bundle or a shared file system."""
    volume_mounts: list[VolumeMount] = []
    """Mounts of these volumes in the trainer container."""
    env: list[AddedVariable] = []
    """Environment variables of the trainer container, such as a proxy. Those of the job take precedence."""
    defaults: PodDefaults = PodDefaults()
    """What the job leaves out: nodeSelector, tolerations, schedulerName and runtimeClassName; in workers also
    priorityClassName and imagePullSecrets, which are those of all stages, and queue."""


class Operator(Values):
    """Arguments of the operator that concern its own work."""

    workers: Annotated[int, Field(ge=1, le=1000)] = _PROCESS.workers
    """Number of concurrent reconciles."""
    resync_seconds: Annotated[float, Field(gt=0, le=86400)] = _PROCESS.resync_seconds
    """Seconds between two lists of all objects."""
    progress_seconds: Annotated[float, Field(gt=0, le=86400)] = _SETTINGS.progress_seconds
    """Seconds between two reads of a job's progress."""
    watch_silence_seconds: Annotated[float, Field(gt=0, le=86400)] = _PROCESS.watch_silence_seconds
    """Seconds without an event after which a watch is opened again. API servers send a bookmark every minute."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""


class Security(Values):
    """User IDs of the containers."""

    run_as_user: Annotated[int, Field(ge=1)] | Literal["none"] = _SETTINGS.run_as_user or "none"
    """User of the operator, and user, group and fsGroup of jobs' pods. none: assigned by the cluster."""


class Amounts(Values):
    """Resources of a container."""

    requests: dict[str, Quantity] = {}
    """Requests of the container."""
    limits: dict[str, Quantity] = {}
    """Limits of the container."""


class OperatorResources(Amounts):
    """Resources of the operator."""

    requests: dict[str, Quantity] = {"cpu": "100m", "memory": "128Mi"}
    """Requests of the container."""
    limits: dict[str, Quantity] = {"memory": "512Mi"}
    """Limits of the container."""


class OperatorToleration(Values):
    """A toleration, as in a pod."""

    key: str = ""
    operator: Literal["Equal", "Exists", "Lt", "Gt"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int = 0


class OperatorPod(Values):
    """The pod of the operator."""

    annotations: Texts = {}
    """Annotations of the pod."""
    labels: Texts = {}
    """Further labels of the pod."""
    resources: OperatorResources = OperatorResources()
    """Requests and limits of the container."""
    node_selector: Texts = {}
    """Labels of the nodes that the pod may run on."""
    tolerations: list[OperatorToleration] = []
    """Taints that the pod tolerates."""
    affinity: dict[Literal["nodeAffinity", "podAffinity", "podAntiAffinity"], dict[str, Any]] = {}
    """Affinity, as in a pod."""
    priority_class_name: Annotated[str, Field(pattern=_DNS_NAME)] = ""
    """PriorityClass of the pod. Empty: the cluster's default."""


class MetricsService(Values):
    """Service of the metrics."""

    create: bool = True
    """Create the Service."""
    annotations: Texts = {}
    """Annotations of the Service."""


class ServiceMonitor(Values):
    """ServiceMonitor of the Prometheus operator."""

    create: bool = False
    """Create it; needs metrics.service and the CRDs of the Prometheus operator."""
    labels: Texts = {}
    """Labels by which Prometheus selects ServiceMonitors."""
    interval: Annotated[str, Field(pattern=r"^([0-9]+(ms|[smhd]))+$")] = "30s"
    """Time between two scrapes."""


class Dashboard(Values):
    """Grafana dashboard in a ConfigMap."""

    create: bool = False
    """Create it."""
    labels: Texts = {"grafana_dashboard": "1"}
    """Labels by which Grafana's sidecar selects ConfigMaps."""


class Metrics(Values):
    """Metrics of the operator."""

    service: MetricsService = MetricsService()
    """Service on port 8081, path /metrics."""
    service_monitor: ServiceMonitor = ServiceMonitor()
    """ServiceMonitor of the Prometheus operator."""
    dashboard: Dashboard = Dashboard()
    """Grafana dashboard in a ConfigMap."""


class AdmissionPolicy(Values):
    """ValidatingAdmissionPolicy of FineTuneJobs."""

    create: bool = False
    """Also let the API server refuse such jobs, with a ValidatingAdmissionPolicy. It cannot check the labels."""


class JobPolicyValues(JobPolicy, Values):
    """What jobs may use."""

    admission: AdmissionPolicy = AdmissionPolicy()
    """ValidatingAdmissionPolicy with the same rules."""


class OperatorPolicy(Values):
    """NetworkPolicy of the operator."""

    create: bool = False
    """Allow only connections to its port 8081, and from it to DNS, the API server and the progress of jobs."""
    api_server_ports: Annotated[list[Port], Field(min_length=1)] = [443, 6443]
    """Ports of the API server."""
    metrics_from: list[dict[Literal["ipBlock", "namespaceSelector", "podSelector"], dict[str, Any]]] = []
    """Peers that may connect to port 8081, as in a NetworkPolicy. Empty: all."""


class JobsPolicy(Values):
    """NetworkPolicies of jobs."""

    create: bool = False
    """One policy per attempt: only its own pods may connect to each other, and the operator to their progress."""


class NetworkPolicies(Values):
    """NetworkPolicies, for clusters whose network plugin enforces them."""

    operator: OperatorPolicy = OperatorPolicy()
    """NetworkPolicy of the operator."""
    jobs: JobsPolicy = JobsPolicy()
    """NetworkPolicies of the pods of jobs."""


class LeaderElection(Values):
    """Leader election between the operator's pods."""

    enabled: bool = True
    """Elect the pod that reconciles with a Lease. False: one replica, which ends before its successor starts."""
    lease_seconds: Annotated[int, Field(ge=SHORTEST_LEASE_SECONDS, le=3600)] = LeaseOptions.seconds
    """Seconds after which another pod takes over from a leader that has crashed."""


class PodDisruptionBudget(Values):
    """PodDisruptionBudget of the operator."""

    create: bool = False
    """Refuse evictions of the operator's last pod: a drain of its node waits until somebody deletes it."""


class ChartValues(Values):
    """Values of the chart finetune-operator."""

    namespaces: Annotated[
        list[Annotated[str, Field(pattern=_DNS_LABEL)]], Field(json_schema_extra={"uniqueItems": True})
    ] = []
    """Namespaces whose jobs the operator runs, which must exist. Empty: all. Operators must not share one."""
    image: OperatorImage = OperatorImage()
    """Image of the operator."""
    trainer_image: TrainerImage = TrainerImage()
    """Image of the pods of jobs that do not set one (`spec.workers.image`)."""
    image_pull_secrets: list[SecretName] = []
    """Secrets that the operator's image is pulled with, as `- name: NAME`. Jobs have their own."""
    crd: Crd = Crd()
    """CustomResourceDefinition of FineTuneJobs."""
    namespace: NamespaceOfRelease = NamespaceOfRelease()
    """Namespace of the release."""
    rbac: Rbac = Rbac()
    """Permissions of the operator and of users."""
    service_account: ServiceAccount = ServiceAccount()
    """Service account of the operator."""
    storage: Storage = Storage()
    """Object storage of jobs that do not set their own (`spec.storage`)."""
    security: Security = Security()
    """User IDs of the containers. Everything else is as Pod Security `restricted` requires."""
    pods: Pods = Pods()
    """Defaults of the pods of all jobs."""
    job_policy: JobPolicyValues = JobPolicyValues()
    """What jobs may use (docs/security.md). Null is no restriction; an empty list allows only the default."""
    operator: Operator = Operator()
    """Arguments of the operator."""
    replicas: Annotated[int, Field(ge=0, le=10)] = 1
    """Pods of the operator: one reconciles, the others are standbys. One is enough for most clusters."""
    leader_election: LeaderElection = LeaderElection()
    """Leader election between the operator's pods."""
    operator_pod: OperatorPod = OperatorPod()
    """Pods of the operator."""
    metrics: Metrics = Metrics()
    """Metrics of the operator; docs/operating.md lists them."""
    network_policies: NetworkPolicies = NetworkPolicies()
    """NetworkPolicies, for clusters whose network plugin enforces them."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """PodDisruptionBudget of the operator."""


def schema_text() -> str:
    """Return values.schema.json."""
    schema = ChartValues.model_json_schema()
    _without_titles(schema)
    # Helm adds this key to the values of a chart that another chart depends on.
    schema["properties"]["global"] = {"type": "object"}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _without_titles(schema: Any) -> None:
    """Remove the titles that pydantic derives from names."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for part in schema.values():
            _without_titles(part)
    elif isinstance(schema, list):
        for part in schema:
            _without_titles(part)


def values_text() -> str:
    """Return values.yaml: every value with its comment."""
    return "\n".join([*_comment(_HEADER, ""), *_lines(ChartValues(), "", spaced=True)]) + "\n"


def _lines(level: Values, indent: str, *, spaced: bool = False) -> Iterator[str]:
    for name, field in type(level).model_fields.items():
        value = getattr(level, name)
        if spaced:
            yield ""
        key, inner = (
            f"{indent}{field.alias}:",
            list(type(value).model_fields.values()) if isinstance(value, Values) else [],
        )
        # A section with one value has the comment of that value.
        yield from _comment((inner[0] if len(inner) == 1 else field).description or "", indent)
        if isinstance(value, Values) and (len(inner) == 1 or isinstance(value, Amounts)):
            yield f"{key} {_flow(value.model_dump(by_alias=True))}"
        elif isinstance(value, Values):
            yield key
            yield from _lines(value, f"{indent}  ")
        else:
            # Sections of the operator's own models fit into one line while they are empty.
            shown = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
            yield f"{key} {_flow(shown)}"


def _flow(value: Any) -> str:
    """Return a value in one line of YAML."""
    if isinstance(value, dict) and value:
        return "{" + ", ".join(f"{name}: {_flow(part)}" for name, part in value.items()) + "}"
    is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][-\w]+|[1-9]\w*[a-zA-Z]", value)
    return str(value) if is_plain else json.dumps(value)  # JSON is YAML


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent) - 2, break_on_hyphens=False):
        yield f"{indent}# {line}"
