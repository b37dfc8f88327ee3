"""The pod of a stage, under Pod Security Standard `restricted`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api import constants
from finetune_api.constants import Env, Stage
from finetune_api.evaluation_needs import EvaluationNeeds
from finetune_api.stages import STAGES
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Affinity, EnvVar, PodSettings, Resources, StagePod, Toleration
from finetune_api.v1alpha1.base import ApiModel
from finetune_api.v1alpha1.quantities import amount

from .. import names
from ..manifests import Manifest
from ..pod_defaults import PodDefaults, StageDefaults, filled
from ..settings import OperatorSettings

_NODE_LOSS: tuple[Manifest, ...] = tuple(
    {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": constants.NODE_LOSS_SECONDS,
    }
    for taint in ("not-ready", "unreachable")
)
"""By default, Kubernetes keeps the pods of a lost node for five minutes, during which the other pods would wait."""

_DISK = "ephemeral-storage"
_STAGE_CPU = "1"
_NO_DEFAULTS = PodDefaults()
_LEAST_BYTES_PER_PARAMETER = 2
"""Size of a base model on disk with 16-bit weights."""


def pod_template(
    config: TrainerConfig, settings: OperatorSettings, grace_seconds: int, needs: EvaluationNeeds, *, gang: str = ""
) -> Manifest:
    """Pod template of a stage's Job; `grace_seconds` is its grace period, `gang` its PodGroup, empty: none."""
    defaults = settings.additions.defaults
    name, own = names.name_of(config), _placement(config, defaults).settings
    workers = filled(config.spec.workers, defaults.workers)
    chosen = {
        "subdomain": names.service_name(name) if names.has_service(config) else None,
        "nodeSelector": own.node_selector,
        "affinity": _written(own.affinity),
        "topologySpreadConstraints": _all_written(own.topology_spread_constraints),
        "schedulerName": own.scheduler_name,
        "schedulingGroup": {"podGroupName": gang} if gang else None,
        "runtimeClassName": own.runtime_class_name,
        "hostNetwork": own.host_network,
        # With the default policy, a pod on the network of the node cannot resolve the names of Services.
        "dnsPolicy": "ClusterFirstWithHostNet" if own.host_network else None,
        "serviceAccountName": workers.service_account_name,
        "priorityClassName": workers.priority_class_name,
        "imagePullSecrets": [{"name": secret} for secret in workers.image_pull_secrets],
    }
    metadata = {"labels": {**own.labels, **names.child_labels(config)}, "annotations": dict(own.annotations)}
    return {
        "metadata": {field: value for field, value in metadata.items() if value},
        "spec": {
            "restartPolicy": "Never",
            **{field: value for field, value in chosen.items() if value},
            "tolerations": [*_NODE_LOSS, *(_toleration(entry) for entry in own.tolerations)],
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": _security_context(settings),
            "containers": [_container(config, settings, needs)],
            "volumes": [
                *(volume for volume, _ in _volumes(config, settings)),
                *settings.additions.volumes,
                *_all_written(own.volumes),
            ],
        },
    }


def _security_context(settings: OperatorSettings) -> Manifest:
    user = settings.run_as_user
    own = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "runAsNonRoot": True,
        **own,
        # Otherwise the kubelet changes the owner of all cached files at every start of a pod.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(config: TrainerConfig, settings: OperatorSettings, needs: EvaluationNeeds) -> Manifest:
    own = _placement(config).settings
    chosen = {"imagePullPolicy": own.image_pull_policy, "envFrom": _all_written(own.env_from)}
    added = {"add": list(own.capabilities)} if own.capabilities else {}
    return {
        "name": constants.TRAINER_CONTAINER,
        "image": config.spec.workers.image or settings.trainer_image,
        **{field: value for field, value in chosen.items() if value},
        "command": [
            "python",
            "-m",
            "finetune_trainer",
            str(config.stage),
            "--config",
            f"{constants.CONFIG_MOUNT}/{constants.CONFIG_KEY}",
        ],
        "env": _environment(config, settings),
        "ports": [{"name": "progress", "containerPort": constants.PROGRESS_PORT}],
        "resources": _resources(config, settings, needs),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **added},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *({"name": volume["name"], **mount} for volume, mount in _volumes(config, settings)),
            *settings.additions.volume_mounts,
            *_all_written(own.volume_mounts),
        ],
    }


def _volumes(config: TrainerConfig, settings: OperatorSettings) -> list[tuple[Manifest, Manifest]]:
    """Return (volume, mount) pairs."""
    # The default /dev/shm of container runtimes is 64 MiB, which is too small for NCCL between the GPUs of a node.
    memory = {"medium": "Memory", "sizeLimit": config.spec.workers.shared_memory}
    found: list[tuple[Manifest, Manifest]] = [
        (
            {"name": "config", "configMap": {"name": names.name_of(config)}},
            {"mountPath": constants.CONFIG_MOUNT, "readOnly": True},
        ),
        ({"name": "scratch", "emptyDir": {}}, {"mountPath": constants.SCRATCH_MOUNT}),
        ({"name": "shared-memory", "emptyDir": memory}, {"mountPath": constants.SHARED_MEMORY_MOUNT}),
    ]
    if cache := config.spec.workers.cache:
        claim = {"claimName": cache.claim_name}
        found.append(({"name": "cache", "persistentVolumeClaim": claim}, {"mountPath": constants.CACHE_MOUNT}))
    if secret := credentials_secret(config, settings):
        projected = {"sources": [{"secret": {"name": secret}}], "defaultMode": 0o440}
        mount = {"mountPath": constants.CREDENTIALS_MOUNT, "readOnly": True}
        found.append(({"name": "credentials", "projected": projected}, mount))
    return found


def credentials_secret(config: TrainerConfig, settings: OperatorSettings) -> str:
    """Return the Secret with storage credentials; empty: the workload identity of the pod is used."""
    return config.spec.storage.credentials_secret or settings.credentials_secret


def _written(block: ApiModel) -> Manifest:
    """Return a block with the same fields as in a pod."""
    return block.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _all_written(blocks: Iterable[ApiModel]) -> list[Manifest]:
    return [_written(block) for block in blocks]


def _toleration(entry: Toleration) -> Manifest:
    return {
        name: value for name, value in entry.model_dump(mode="json", by_alias=True).items() if value not in ("", None)
    }


_UNSET: dict[str, str] = {
    Env.MASTER_ADDR: "127.0.0.1",
    Env.PROGRESS_HOST: "",
    Env.CACHE: "",
    Env.CREDENTIALS: "",
    Env.FORK_SERVER: "",
}
"""Variables that a pod does not always need -> the value that has the effect of their absence."""


def _environment(config: TrainerConfig, settings: OperatorSettings) -> list[Manifest]:
    index = f"metadata.annotations['{constants.COMPLETION_INDEX}']"
    own: dict[str, str] = {
        # `envFrom` can have any names, and only variables that are set here take precedence over it.
        **(_UNSET if _placement(config).settings.env_from else {}),
        **({Env.MASTER_ADDR: names.first_host(config)} if names.has_service(config) else {}),
        **({Env.OMP_NUM_THREADS: str(threads)} if (threads := _threads(config)) else {}),
        **({Env.CACHE: constants.CACHE_MOUNT} if config.spec.workers.cache else {}),
        **({Env.CREDENTIALS: constants.CREDENTIALS_MOUNT} if credentials_secret(config, settings) else {}),
        Env.MASTER_PORT: str(constants.RENDEZVOUS_PORT),
        Env.PROGRESS_PORT: str(constants.PROGRESS_PORT),
        Env.SCRATCH: constants.SCRATCH_MOUNT,
        Env.TERMINATION_LOG: constants.TERMINATION_LOG,
        # The root file system is read-only: every library's cache goes to the scratch volume.
        "HOME": constants.SCRATCH_MOUNT,
        # Libraries need a user name, and a user that the cluster assigned is not in /etc/passwd of the image.
        "USER": "finetune",
        "TMPDIR": constants.SCRATCH_MOUNT,
        # boto3 must not fall back to the role of the node, which may have more permissions.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return [
        *settings.additions.env,
        {"name": str(Env.NODE_RANK), "valueFrom": {"fieldRef": {"fieldPath": index}}},
        *({"name": str(name), "value": value} for name, value in own.items()),
        *(_variable(variable) for variable in config.spec.workers.env),
    ]


def _variable(variable: EnvVar) -> Manifest:
    if variable.value_from is None:
        return {"name": variable.name, "value": variable.value or ""}
    source = variable.value_from.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"name": variable.name, "valueFrom": source}


def _threads(config: TrainerConfig) -> int:
    """Return the threads of each process, because a container sees all cores of its node. 0: not specified."""
    resources = _placement(config).settings.resources
    cpus = resources.requests.get("cpu") or resources.limits.get("cpu")
    return max(1, int(amount(cpus)) // config.world.processes_per_node) if cpus else 0


@dataclass(frozen=True)
class _Placement:
    """Settings and GPUs of the pods of a stage."""

    settings: PodSettings
    gpus: int = 0


def _placement(config: TrainerConfig, defaults: PodDefaults = _NO_DEFAULTS) -> _Placement:
    """Return the placement: for training that of `spec.workers`. `defaults` are for what the job leaves out.

    An evaluation on a GPU runs on the nodes of the workers, but with its own resources.
    """
    workers, stages = filled(config.spec.workers, defaults.workers), config.spec.stages
    if config.stage is Stage.TRAIN:
        return _Placement(workers, workers.gpus_per_node)
    # A poll reads the same files as the prepare stage, and much less of them.
    name = Stage.PREPARE if config.stage is Stage.POLL else config.stage
    own: StagePod = getattr(stages, name, None) or StagePod()
    if config.stage is Stage.POLL:
        own = own.model_copy(update={"resources": Resources()})
    own_defaults: StageDefaults = getattr(defaults, name, None) or StageDefaults()
    if not config.world.gpus:
        return _Placement(filled(own, own_defaults))
    # Its other defaults are for nodes without GPUs.
    own = filled(own, own_defaults, "scheduler_name")
    inherited = {
        "node_selector": {**workers.node_selector, **own.node_selector},
        "tolerations": (*workers.tolerations, *own.tolerations),
        "runtime_class_name": own.runtime_class_name or workers.runtime_class_name,
        "affinity": _on_worker_nodes(own.affinity, workers.affinity),
    }
    return _Placement(own.model_copy(update=inherited), gpus=1)


def _on_worker_nodes(own: Affinity, workers: Affinity) -> Affinity:
    """Return the affinity with the workers' rules for nodes if it has none.

    Their rules for pods are not inherited: they may require pods of the training, which no longer exist.
    """
    if own.node_affinity is not None:
        return own
    return own.model_copy(update={"node_affinity": workers.node_affinity})


def _resources(config: TrainerConfig, settings: OperatorSettings, needs: EvaluationNeeds) -> Manifest:
    placement = _placement(config)
    resources = placement.settings.resources
    limits, requests = dict(resources.limits), dict(resources.requests)
    if placement.gpus:
        limits[config.spec.workers.gpu_resource] = str(placement.gpus)
    # A limit alone is a request of the same size.
    defaults = {} if config.stage is Stage.TRAIN else {"cpu": _STAGE_CPU, "memory": _memory(config, needs)}
    if amount(settings.ephemeral_storage):
        defaults[_DISK] = _disk(config, settings, needs.parameters)
    requests |= {name: size for name, size in defaults.items() if name not in requests and name not in limits}
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _memory(config: TrainerConfig, needs: EvaluationNeeds) -> str:
    """Return the memory request of a stage other than training."""
    if not STAGES[config.stage].loads_model or not needs.parameters:
        return STAGES[config.stage].memory
    return f"{math.ceil(needs.memory_bytes / 2**20)}Mi"


def _disk(config: TrainerConfig, settings: OperatorSettings, parameters: int) -> str:
    """Return the disk request: the default plus the files of the base model if they are not on a volume.

    It is a lower bound, because an estimate that is too high could exclude nodes that are large enough.
    """
    if not parameters or config.spec.workers.cache is not None:
        return settings.ephemeral_storage
    mebibytes = (amount(settings.ephemeral_storage) + _LEAST_BYTES_PER_PARAMETER * parameters) / 2**20
    return f"{math.ceil(mebibytes)}Mi"
