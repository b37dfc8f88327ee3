"""Settings of the pods of a stage, which `spec.workers`, `spec.stages.prepare` and `spec.stages.evaluate` share."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from .base import ApiModel, Quantity, SecretName, matching
from .scope import Scope

POD_BLOCKS: Final = ("workers", "stages.prepare", "stages.evaluate")
"""Paths of the blocks with these settings, below `spec`; also the names of their attributes."""

_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

KEY_PATTERN: Final = rf"^({_DNS_SUBDOMAIN}/)?{_NAME}$"
"""Keys of labels and annotations, and names of node labels and resources."""

_Key = Annotated[
    str, matching(KEY_PATTERN, "the key of a label, such as zone or topology.kubernetes.io/zone", max_length=317)
]

LabelValue = Annotated[
    str,
    matching(
        rf"^({_NAME})?$",
        "a value of a label: letters, digits, '-', '_' and '.', with a letter or digit at both ends",
        max_length=63,
    ),
]
"""Value of a label of a pod."""

ObjectName = Annotated[
    str,
    matching(
        rf"^{_DNS_SUBDOMAIN}$",
        "a name of a-z, 0-9, '-' and '.', with a letter or digit at both ends",
        max_length=253,
    ),
]
"""Name of an object of the cluster that is in no namespace."""

ResourceName = Annotated[
    str,
    matching(
        rf"^{_DNS_SUBDOMAIN}/{_NAME}$", "the name of a resource with its domain, such as nvidia.com/gpu", max_length=317
    ),
]
"""Name of an extended resource, `domain/name`, as a device plugin announces it."""

VariableName = Annotated[
    str,
    matching(r"^[A-Za-z_][A-Za-z0-9_]*$", "a variable's name: letters, digits and _, no digit first", max_length=128),
]
"""Name of an environment variable, or its beginning."""

_VolumeName = Annotated[
    str,
    matching(
        rf"^{_DNS_LABEL}$", "the name of a volume: a-z, 0-9 and '-', with a letter or digit at both ends", max_length=63
    ),
]

FreeForm = Annotated[dict[str, Any], Field(max_length=32)]
"""An object that is passed on unchanged, as in a pod. Only the API server checks it, when the pods' Job is created."""


class Resources(ApiModel, scope=Scope.ATTEMPT):
    """Requests and limits of one pod, as in a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves. `cpu`, or else its limit, also sets the number of threads of each process."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the pod may not exceed. A job that cannot fit into `memory` is rejected before it starts. Resources of
    device plugins, such as `rdma/hca`, are set here; GPUs by `gpusPerNode` and `gpus`."""


class Toleration(ApiModel, scope=Scope.ATTEMPT):
    """A node taint that the pods tolerate, as in a pod."""

    key: Annotated[str, Field(max_length=316)] = ""
    """Key of the taint. Empty, with Exists: all taints."""

    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists matches every value, Equal only `value`."""

    value: Annotated[str, Field(max_length=63)] = ""
    """Value of the taint."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: all effects."""

    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long the pod stays on the node after a NoExecute taint. Absent: without limit."""


class Affinity(ApiModel, scope=Scope.ATTEMPT):
    """Rules for the nodes of a pod, as in a pod. The API server checks them when the pods' Job is created."""

    node_affinity: FreeForm | None = None
    """Rules for the labels of the node."""

    pod_affinity: FreeForm | None = None
    """Pods that the pod must run near."""

    pod_anti_affinity: FreeForm | None = None
    """Pods that the pod must not run near."""


class TopologySpread(ApiModel, scope=Scope.ATTEMPT):
    """How pods are spread over zones or other groups of nodes, as in a pod."""

    max_skew: Annotated[int, Field(ge=1, le=1024)]
    """Largest difference between the numbers of selected pods in two groups."""

    topology_key: _Key
    """Label of nodes whose values are the groups."""

    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """DoNotSchedule: the pod waits. ScheduleAnyway: the scheduler prefers nodes that reduce the difference."""

    label_selector: FreeForm | None = None
    """Selects the pods that are counted, as in a pod: `matchLabels: {finetune.dev/job: NAME}` selects those of this
    job. The API server checks it when the pods' Job is created. Absent: none."""

    match_label_keys: Annotated[tuple[_Key, ...], Field(max_length=8)] = ()
    """Count only pods with the same values of these labels as the new pod. Needs `labelSelector`."""

    min_domains: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Least number of groups. Only with DoNotSchedule."""

    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Ignore: nodes that the affinity and the node selector exclude are also counted. Absent: Honor."""

    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Honor: nodes with taints that the pod does not tolerate are not counted. Absent: Ignore."""


class Volume(ApiModel, scope=Scope.ATTEMPT):
    """A volume, as in a pod: a name and exactly one source. The API server checks the source when the pods' Job is
    created."""

    name: _VolumeName
    """Name of the volume, to which `volumeMounts` refer."""

    config_map: FreeForm | None = None
    """Files from a ConfigMap."""

    secret: FreeForm | None = None
    """Files from a Secret."""

    projected: FreeForm | None = None
    """Files from several sources in one folder."""

    downward_api: Annotated[FreeForm | None, Field(alias="downwardAPI")] = None
    """Files with fields of the pod."""

    empty_dir: FreeForm | None = None
    """A folder that is deleted with the pod."""

    persistent_volume_claim: FreeForm | None = None
    """A PersistentVolumeClaim in the job's namespace."""

    ephemeral: FreeForm | None = None
    """A PersistentVolumeClaim that is created and deleted with the pod."""

    csi: FreeForm | None = None
    """A volume of a CSI driver that is created and deleted with the pod."""

    nfs: FreeForm | None = None
    """A folder of an NFS server."""

    image: FreeForm | None = None
    """The files of an image or OCI artifact, in clusters that support it."""

    host_path: FreeForm | None = None
    """A folder or file of the node. Pod Security `baseline` refuses it."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that are set."""
        return tuple(
            str(field.alias)
            for name, field in type(self).model_fields.items()
            if name != "name" and getattr(self, name) is not None
        )


class VolumeMount(ApiModel, scope=Scope.ATTEMPT):
    """Where the trainer container sees a volume of `volumes`, as in a pod."""

    name: _VolumeName
    """Name of the volume."""

    mount_path: Annotated[
        str, matching(r"^/[^:\x00-\x1f\x7f]*$", "an absolute path without ':', such as /data", max_length=1024)
    ]
    """Absolute path. Not at, above or below the operator's own mounts: /etc/finetune, /etc/finetune-credentials,
    /scratch, /cache, /dev/shm and /dev/termination-log."""

    read_only: bool = False
    """True: the container cannot write to the volume."""

    sub_path: Annotated[str, Field(max_length=1024)] | None = None
    """Folder or file of the volume, a relative path without `..`. Absent: the whole volume."""

    sub_path_expr: Annotated[str, Field(max_length=1024)] | None = None
    """Like `subPath`, with environment variables such as `$(FINETUNE_NODE_RANK)`."""

    mount_propagation: Literal["None", "HostToContainer"] | None = None
    """HostToContainer: the container sees what the node mounts below the volume later. Absent: None."""


class EnvFromReference(ApiModel, scope=Scope.ATTEMPT):
    """A Secret or ConfigMap in the job's namespace."""

    name: SecretName
    """Name of the Secret or ConfigMap."""

    optional: bool | None = None
    """True: it may be missing. Absent: the pod waits until it exists."""


class EnvFrom(ApiModel, scope=Scope.ATTEMPT):
    """Environment variables from all keys of a Secret or ConfigMap, as in a pod. Exactly one of `secretRef` and
    `configMapRef`."""

    prefix: VariableName | None = None
    """Beginning of the variables' names, before the key."""

    secret_ref: EnvFromReference | None = None
    """A Secret."""

    config_map_ref: EnvFromReference | None = None
    """A ConfigMap."""


class PodSettings(ApiModel, scope=Scope.ATTEMPT):
    """Settings of the pods of a stage."""

    resources: Resources = Resources()
    """Requests and limits of one pod. Absent: none for training; for prepare and evaluate, requests for one CPU and for
    the memory that the stage needs."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    """Labels that the node must have."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Node taints that the pods tolerate."""

    affinity: Affinity = Affinity()
    """Rules for the nodes of the pods."""

    topology_spread_constraints: Annotated[tuple[TopologySpread, ...], Field(max_length=8)] = ()
    """How the pods are spread over groups of nodes."""

    scheduler_name: ObjectName | None = None
    """Scheduler of the pods. Absent: the cluster's default."""

    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods. Absent: the default of the node."""

    host_network: bool = False
    """Use the network of the node, with DNS policy ClusterFirstWithHostNet. NetworkPolicies do not apply to the pods,
    and the trainer's ports 8080 and 29500 are open on the node. Pod Security `baseline` refuses it."""

    capabilities: Annotated[tuple[Literal["IPC_LOCK"], ...], Field(max_length=1)] = ()
    """Linux capabilities that are added to the container; all others are dropped. Has no effect in container runtimes
    that give added capabilities only to root, such as containerd, because the trainer does not run as root. Pod
    Security `baseline` refuses it."""

    volumes: Annotated[tuple[Volume, ...], Field(max_length=16)] = ()
    """Additional volumes. Only in a cluster. Their names must differ from config, scratch, shared-memory, cache and
    credentials, which the operator uses."""

    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=32)] = ()
    """Where the trainer container sees the volumes."""

    env_from: Annotated[tuple[EnvFrom, ...], Field(max_length=16)] = ()
    """Secrets and ConfigMaps whose keys become environment variables. Only in a cluster. Variables of `workers.env` and
    those that the operator sets take precedence."""

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled. Absent: Always for the tag latest, else IfNotPresent."""

    labels: Annotated[dict[str, LabelValue], Field(max_length=32)] = {}
    """Additional labels of the pods. Keys of the operator and of Kubernetes Jobs are refused."""

    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = {}
    """Additional annotations of the pods. Keys of the operator and of Kubernetes Jobs are refused."""
