"""The pod of a stage, under Pod Security Standard `restricted`."""

from finetune_api import constants
from finetune_api.constants import Env, Stage
from finetune_api.trainer_config import TrainerConfig

from ..manifests import Manifest
from ..settings import OperatorSettings
from . import names

_USER = 10001
"""Any non-root number does; a fixed one keeps the ownership of cached files the same over pods."""


def pod_template(config: TrainerConfig, settings: OperatorSettings) -> Manifest:
    """Pod template of a stage's Job."""
    name = names.name_of(config)
    return {
        "metadata": {"labels": names.child_labels(config)},
        "spec": {
            "restartPolicy": "Never",
            "subdomain": name,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": settings.termination_grace_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(config, settings)],
            "volumes": [
                {"name": "config", "configMap": {"name": name}},
                {"name": "scratch", "emptyDir": {}},
                # The container runtime's own /dev/shm is 64 MiB, too small for NCCL between the GPUs of a node.
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _container(config: TrainerConfig, settings: OperatorSettings) -> Manifest:
    return {
        "name": constants.TRAINER_CONTAINER,
        "image": settings.trainer_image,
        "command": [
            "python",
            "-m",
            "finetune_trainer",
            str(config.stage),
            "--config",
            f"{constants.CONFIG_MOUNT}/{constants.CONFIG_KEY}",
        ],
        "env": _environment(config),
        "ports": [{"name": "progress", "containerPort": constants.PROGRESS_PORT}],
        "resources": _resources(config),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "config", "mountPath": constants.CONFIG_MOUNT, "readOnly": True},
            {"name": "scratch", "mountPath": constants.SCRATCH_MOUNT},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _environment(config: TrainerConfig) -> list[Manifest]:
    index = f"metadata.annotations['{constants.ANNOTATION_COMPLETION_INDEX}']"
    own = {
        Env.MASTER_ADDR: names.first_host(config),
        Env.MASTER_PORT: str(constants.RENDEZVOUS_PORT),
        Env.PROGRESS_PORT: str(constants.PROGRESS_PORT),
        Env.SCRATCH: constants.SCRATCH_MOUNT,
        Env.TERMINATION_LOG: "/dev/termination-log",
        # The root file system is read-only: every library's cache goes to the scratch volume.
        "HOME": constants.SCRATCH_MOUNT,
        "TMPDIR": constants.SCRATCH_MOUNT,
        # boto3's chain must not fall through to the broader role of the node.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return [
        {"name": str(Env.NODE_RANK), "valueFrom": {"fieldRef": {"fieldPath": index}}},
        *({"name": str(name), "value": value} for name, value in own.items()),
        *({"name": variable.name, "value": variable.value} for variable in config.spec.workers.env),
    ]


def _resources(config: TrainerConfig) -> Manifest:
    resources = config.spec.workers.resources
    limits: dict[str, str] = dict(resources.limits)
    gpus = config.spec.workers.gpus_per_node
    if gpus and config.stage is Stage.TRAIN:
        limits["nvidia.com/gpu"] = str(gpus)
    elif gpus and config.stage is Stage.EVALUATE:
        limits["nvidia.com/gpu"] = "1"
    return {kind: amounts for kind, amounts in (("requests", dict(resources.requests)), ("limits", limits)) if amounts}
