"""`spec.workers` and `spec.restart`: where the job runs, how often it is restarted, and its limits."""

from typing import Annotated, Literal, Self

from pydantic import Field

from .base import ApiModel, Duration, Quantity, SecretName, matching
from .scope import Scope

DEFAULT_START_TIMEOUT = "5m"
"""Value of `workers.startTimeout` if only `minNodes` is set: enough to start a node and pull an image of some GB."""


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

    name: Annotated[
        str,
        matching(
            r"^[A-Za-z_][A-Za-z0-9_]*$", "a variable's name: letters, digits and _, no digit first", max_length=128
        ),
    ]
    """Name of the variable."""

    value: Annotated[str, Field(max_length=4096)] | None = None
    """Value, stored in clear text in the pods. Use `valueFrom` for a secret. Absent, and no `valueFrom`: empty."""

    value_from: EnvVarSource | None = None
    """Read the value from a Secret or ConfigMap, instead of `value`. Only in a cluster."""


class Resources(ApiModel, scope=Scope.ATTEMPT):
    """Requests and limits of one worker pod, as in a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves. `cpu`, or else its limit, also sets the number of threads of each process."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the worker may not exceed. A job that cannot fit into `memory` is rejected before it starts."""


class Toleration(ApiModel, scope=Scope.ATTEMPT):
    """A node taint that the workers tolerate, as in a pod."""

    key: Annotated[str, Field(max_length=316)] = ""
    """Key of the taint. Empty, with Exists: all taints."""

    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists matches every value, Equal only `value`."""

    value: Annotated[str, Field(max_length=63)] = ""
    """Value of the taint."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: all effects."""

    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long the worker stays on the node after a NoExecute taint. Absent: without limit."""


class Cache(ApiModel, scope=Scope.ATTEMPT):
    """A volume that is kept when the pods of an attempt are deleted."""

    claim_name: SecretName
    """PersistentVolumeClaim in the job's namespace, mounted by every pod of the job. If they run on
    several nodes, its access mode must be ReadWriteMany."""


class Workers(ApiModel, scope=Scope.ATTEMPT):
    """Number of workers, and their resources, environment and placement."""

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

    resources: Resources = Resources()
    """Requests and limits of one worker."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    """Additional environment variables of the trainer."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer. Absent: the default of the operator."""

    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=8)] = ()
    """Secrets used to pull the image."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    """Labels that the node must have."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Node taints that the workers tolerate."""

    service_account_name: SecretName | None = None
    """Service account of the pods, for access to storage with workload identity. Its API token is not mounted."""

    priority_class_name: SecretName | None = None
    """PriorityClass of the pods."""

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
