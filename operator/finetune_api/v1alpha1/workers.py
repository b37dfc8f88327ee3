"""`spec.workers` and `spec.restart`: where the job runs, how often it is restarted, and its limits."""

from typing import Annotated, Self

from pydantic import Field

from .base import ApiModel, Duration, Quantity, SecretName, matching
from .pod import PodSettings, ResourceName, VariableName
from .scope import Scope

DEFAULT_START_TIMEOUT = "5m"
"""Value of `workers.startTimeout` if only `minNodes` is set: enough to start a node and pull an image of some GB."""


QueueName = Annotated[
    str,
    matching(
        r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$",
        "the name of a LocalQueue: at most 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends",
        max_length=63,
    ),
]
"""Name of a LocalQueue, which is also a value of a label."""


class KeySelector(ApiModel, scope=Scope.ATTEMPT):
    """One key of a Secret or ConfigMap in the job's namespace, as in a pod."""

    name: SecretName
    """Name of the Secret or ConfigMap."""

    key: Annotated[
        str, matching(r"^[-._a-zA-Z0-9]+$", "the name of a key: letters, digits, '-', '_' and '.'", max_length=253)
    ]
    """Key that contains the value of the variable."""

    optional: bool | None = None
    """True: the variable is omitted if the object or the key does not exist. Absent: the pod waits until both exist."""


class EnvVarSource(ApiModel, scope=Scope.ATTEMPT):
    """Where the value of a variable comes from, as in a pod. Exactly one of the fields."""

    secret_key_ref: KeySelector | None = None
    """Key of a Secret."""

    config_map_key_ref: KeySelector | None = None
    """Key of a ConfigMap."""


class EnvVar(ApiModel, scope=Scope.ATTEMPT):
    """One environment variable of the trainer, as in a pod."""

    name: VariableName
    """Name of the variable."""

    value: Annotated[str, Field(max_length=4096)] | None = None
    """Value, stored in clear text in the pods. Use `valueFrom` for a secret. Absent, and no `valueFrom`: empty."""

    value_from: EnvVarSource | None = None
    """Read the value from a Secret or ConfigMap, instead of `value`. Only in a cluster."""


class Cache(ApiModel, scope=Scope.ATTEMPT):
    """A volume that is kept when the pods of an attempt are deleted."""

    claim_name: SecretName
    """PersistentVolumeClaim in the job's namespace, mounted by every pod of the job. If they run on
    several nodes, its access mode must be ReadWriteMany."""


class WorkerCount(ApiModel, scope=Scope.ATTEMPT):
    """Number of workers, and of their GPUs."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Worker pods; in local runs, worker processes."""

    min_nodes: Annotated[int, Field(ge=1, le=512)] | None = None
    """Least number of worker pods to train with if not all of `nodes` are running within `startTimeout`, at the start
    and after nodes were lost. Every restart requests `nodes` again. Global batches and the order of examples do not
    change. Absent: wait for all."""

    start_timeout: Duration | None = None
    """With `minNodes`: how long an attempt waits until all of its pods are running, including image pulls. After that
    it is restarted with the number of pods that are running. Absent: 5m."""

    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of each worker, with one training process per GPU. 0: one process on the CPU."""

    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Resource that one GPU of a worker, or of an evaluation on a GPU, is requested as: `nvidia.com/gpu`, a MIG device
    such as `nvidia.com/mig-1g.10gb` (at most one per worker), or `amd.com/gpu` (with an image for ROCm)."""

    gpu_memory: Quantity | None = None
    """Memory of one GPU, such as 80Gi or, as `nvidia-smi` shows it, 81559Mi. ZeRO stage, micro-batch and offload are
    chosen so that the training fits in it, and training that cannot fit in it is refused before it starts. It selects
    no nodes; use `nodeSelector`. Absent: the memory of GPUs is estimated, but not compared with a limit."""


# Fields of the last base class come first in the CRD.
class Workers(PodSettings, WorkerCount, scope=Scope.ATTEMPT):
    """Number of workers, and their resources, environment and placement."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    """Additional environment variables of the trainer."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer. Absent: the default of the operator."""

    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=8)] = ()
    """Secrets used to pull the image."""

    service_account_name: SecretName | None = None
    """Service account of the pods, for access to storage with workload identity. Its API token is not mounted."""

    priority_class_name: SecretName | None = None
    """PriorityClass of the pods."""

    queue: QueueName | None = None
    """LocalQueue of Kueue in the job's namespace. The Job of a training attempt is created suspended, and its pods are
    created when Kueue admits it. The other stages are not queued. Absent: none. Local runs ignore it."""

    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, which NCCL and data loading use. It counts as memory of the pod."""

    cache: Cache | None = None
    """Volume for base models, prepared data and copies of the newest checkpoints, which later attempts and other jobs
    with the same claim can use. Absent: deleted with the pod. Local runs keep them in the folder of the runs."""

    def without_fixed_defaults(self) -> Self:
        """Without `startTimeout` if it is set to its default and applies."""
        is_default = self.start_timeout == DEFAULT_START_TIMEOUT and self.min_nodes is not None
        return self.model_copy(update={"start_timeout": None}) if is_default else self


class Restart(ApiModel, scope=Scope.NOW):
    """How often failed stages are restarted. Training resumes from the last committed checkpoint."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts of each stage after failures of the stage itself. For training, the count is reset when a new checkpoint
    is committed. A failure that repeats unchanged ends the run earlier."""

    max_disruptions: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Restarts after evictions, preemptions and other interruptions that the stage did not cause."""


class Budget(ApiModel, scope=Scope.NOW):
    """Limits of a run. A run that exceeds a limit saves a checkpoint, is stopped and has failed."""

    deadline: Duration | None = None
    """Maximum time from the start of the run to its end, including waiting and restarts, but not the time in which the
    job is suspended."""
