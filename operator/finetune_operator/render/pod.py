"""The pod of a stage, under Pod Security Standard `restricted`."""

import math

from finetune_api import constants
from finetune_api.constants import Env, Stage
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import EnvVar, Toleration
from finetune_api.v1alpha1.quantities import amount

from ..manifests import Manifest
from ..settings import OperatorSettings
from . import names

_NODE_LOSS: tuple[Manifest, ...] = tuple(
    {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": constants.NODE_LOSS_SECONDS,
    }
    for taint in ("not-ready", "unreachable")
)
"""Kubernetes' own default keeps pods of a lost node for five minutes, in which the others wait for them."""

_DISK = "ephemeral-storage"
_LEAST_BYTES_PER_PARAMETER = 2
"""Of a base model on disk: 16-bit weights."""


def pod_template(
    config: TrainerConfig, settings: OperatorSettings, grace_seconds: int, parameters: int = 0
) -> Manifest:
    """Pod template of a stage's Job; `grace_seconds` is what it gets after SIGTERM.

    `parameters` are those of the base model; 0: not known yet.
    """
    name, workers = names.name_of(config), config.spec.workers
    chosen = {
        "subdomain": names.service_name(name) if names.has_service(config) else None,
        "nodeSelector": workers.node_selector,
        "serviceAccountName": workers.service_account_name,
        "priorityClassName": workers.priority_class_name,
        "imagePullSecrets": [{"name": secret} for secret in workers.image_pull_secrets],
    }
    return {
        "metadata": {"labels": names.child_labels(config)},
        "spec": {
            "restartPolicy": "Never",
            **{field: value for field, value in chosen.items() if value},
            "tolerations": [*_NODE_LOSS, *(_toleration(entry) for entry in workers.tolerations)],
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": _security_context(settings),
            "containers": [_container(config, settings, parameters)],
            "volumes": [*(volume for volume, _ in _volumes(config, settings)), *settings.additions.volumes],
        },
    }


def _security_context(settings: OperatorSettings) -> Manifest:
    user = settings.run_as_user
    own = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "runAsNonRoot": True,
        **own,
        # Else the kubelet changes the owner of every cached file at every start of a pod.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(config: TrainerConfig, settings: OperatorSettings, parameters: int) -> Manifest:
    return {
        "name": constants.TRAINER_CONTAINER,
        "image": config.spec.workers.image or settings.trainer_image,
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
        "resources": _resources(config, settings, parameters),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *({"name": volume["name"], **mount} for volume, mount in _volumes(config, settings)),
            *settings.additions.volume_mounts,
        ],
    }


def _volumes(config: TrainerConfig, settings: OperatorSettings) -> list[tuple[Manifest, Manifest]]:
    """Each volume, and where it is mounted."""
    # The container runtime's own /dev/shm is 64 MiB, too small for NCCL between the GPUs of a node.
    memory = {"medium": "Memory", "sizeLimit": config.spec.workers.shared_memory}
    found: list[tuple[Manifest, Manifest]] = [
        (
            {"name": "config", "configMap": {"name": names.name_of(config)}},
            {"mountPath": constants.CONFIG_MOUNT, "readOnly": True},
        ),
        ({"name": "scratch", "emptyDir": {}}, {"mountPath": constants.SCRATCH_MOUNT}),
        ({"name": "shared-memory", "emptyDir": memory}, {"mountPath": "/dev/shm"}),
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
    """The Secret with the job's storage credentials; empty: the pod's own identity."""
    return config.spec.storage.credentials_secret or settings.credentials_secret


def _toleration(entry: Toleration) -> Manifest:
    return {
        name: value for name, value in entry.model_dump(mode="json", by_alias=True).items() if value not in ("", None)
    }


def _environment(config: TrainerConfig, settings: OperatorSettings) -> list[Manifest]:
    index = f"metadata.annotations['{constants.COMPLETION_INDEX}']"
    own: dict[str, str] = {
        **({Env.MASTER_ADDR: names.first_host(config)} if names.has_service(config) else {}),
        **({Env.OMP_NUM_THREADS: str(threads)} if (threads := _threads(config)) else {}),
        **({Env.CACHE: constants.CACHE_MOUNT} if config.spec.workers.cache else {}),
        **({Env.CREDENTIALS: constants.CREDENTIALS_MOUNT} if credentials_secret(config, settings) else {}),
        Env.MASTER_PORT: str(constants.RENDEZVOUS_PORT),
        Env.PROGRESS_PORT: str(constants.PROGRESS_PORT),
        Env.SCRATCH: constants.SCRATCH_MOUNT,
        Env.TERMINATION_LOG: "/dev/termination-log",
        # The root file system is read-only: every library's cache goes to the scratch volume.
        "HOME": constants.SCRATCH_MOUNT,
        # A user whom the cluster has chosen is not in the image's /etc/passwd, and libraries ask for a name.
        "USER": "finetune",
        "TMPDIR": constants.SCRATCH_MOUNT,
        # boto3's chain must not fall through to the broader role of the node.
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
    """Of each process: a container sees all cores of its node, whatever it may use of them. 0: nothing is said."""
    resources = config.spec.workers.resources
    cpus = resources.requests.get("cpu") or resources.limits.get("cpu")
    return max(1, int(amount(cpus)) // config.world.processes_per_node) if cpus else 0


def _resources(config: TrainerConfig, settings: OperatorSettings, parameters: int) -> Manifest:
    resources = config.spec.workers.resources
    limits: dict[str, str] = dict(resources.limits)
    gpus = config.spec.workers.gpus_per_node
    if gpus and config.stage is Stage.TRAIN:
        limits["nvidia.com/gpu"] = str(gpus)
    elif gpus and config.stage is Stage.EVALUATE:
        limits["nvidia.com/gpu"] = "1"
    requests = dict(resources.requests)
    # A limit alone is a request of the same size.
    if amount(settings.ephemeral_storage) and _DISK not in requests and _DISK not in limits:
        requests[_DISK] = _disk(config, settings, parameters)
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _disk(config: TrainerConfig, settings: OperatorSettings, parameters: int) -> str:
    """The default, and the base model's files where they are not on a volume: so much a pod needs in any case.

    No estimate of the most, which could keep pods from nodes that are large enough.
    """
    if not parameters or config.spec.workers.cache is not None:
        return settings.ephemeral_storage
    mebibytes = (amount(settings.ephemeral_storage) + _LEAST_BYTES_PER_PARAMETER * parameters) / 2**20
    return f"{math.ceil(mebibytes)}Mi"
