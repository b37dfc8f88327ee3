"""`spec.workers` and `spec.restart`: where the job runs and how often it may fall."""

from typing import Annotated, Literal, Self

from pydantic import Field

from .base import ApiModel, Duration, Quantity, SecretName, matching
from .scope import Scope

DEFAULT_START_TIMEOUT = "5m"
"""`workers.startTimeout` where `minNodes` is given alone: a node comes up and pulls an image of some GB by then."""


class KeySelector(ApiModel, scope=Scope.ATTEMPT):
    """One key of a Secret or ConfigMap in the job's namespace, as in a pod."""

    name: SecretName
    """Name of the Secret or ConfigMap."""

    key: Annotated[
        str, matching(r"^[-._a-zA-Z0-9]+$", "the name of a key: letters, digits, '-', '_' and '.'", max_length=253)
    ]
    """Key whose value the variable gets."""

    optional: bool | None = None
    """True: without the object or the key, the variable is left out. Absent: the pod waits until both exist."""


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
    """Name."""

    value: Annotated[str, Field(max_length=4096)] | None = None
    """Value. The pods hold it in clear text: use `valueFrom` for a secret. Absent, and no `valueFrom`: empty."""

    value_from: EnvVarSource | None = None
    """Take the value from a Secret or ConfigMap, instead of `value`. Only in a cluster."""


class Resources(ApiModel, scope=Scope.ATTEMPT):
    """Requests and limits of one worker pod, as in a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves. `cpu`, here or else as a limit, also sets the threads of a worker's processes."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the worker may not exceed. A job that cannot fit `memory` is refused before it starts."""


class Toleration(ApiModel, scope=Scope.ATTEMPT):
    """A taint of nodes that the workers put up with, as in a pod."""

    key: Annotated[str, Field(max_length=316)] = ""
    """Key of the taint. Empty, with Exists: every taint."""

    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists: whatever the value; Equal: this value."""

    value: Annotated[str, Field(max_length=63)] = ""
    """Value of the taint."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: all effects."""

    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long after a NoExecute taint the worker stays. Absent: for ever."""


class Cache(ApiModel, scope=Scope.ATTEMPT):
    """A volume that outlives the pods of an attempt."""

    claim_name: SecretName
    """PersistentVolumeClaim in the job's namespace, mounted by every pod of the job. Pods on several nodes need one
    that several nodes can mount (ReadWriteMany)."""


class Workers(ApiModel, scope=Scope.ATTEMPT):
    """How many workers, and what each gets."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Worker pods; locally, worker processes."""

    min_nodes: Annotated[int, Field(ge=1, le=512)] | None = None
    """Train with as few worker pods as this where no more of them run within `startTimeout`: at the start, and after
    nodes were lost. Every restart tries for `nodes` again. Global batches, and the order of examples, stay the same.
    Absent: wait for all."""

    start_timeout: Duration | None = None
    """With `minNodes`: how long an attempt waits for all of its pods to run, images pulled, before it is started again
    with those that do. Absent: 5m."""

    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs, and so training processes, of each worker. 0: one process on the CPU."""

    resources: Resources = Resources()
    """Requests and limits of one worker."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    """More environment for the trainer."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer. Absent: the operator's."""

    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=8)] = ()
    """Secrets with which the image is pulled."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    """Labels that a node has to have."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints of nodes that the workers put up with."""

    service_account_name: SecretName | None = None
    """Service account of the pods, for storage access by workload identity. No token of it is mounted."""

    priority_class_name: SecretName | None = None
    """Priority of the pods."""

    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, which counts as memory of the pod: NCCL and data loading use it."""

    cache: Cache | None = None
    """Where base models, prepared data and copies of the newest checkpoints stay for the next attempt, and for other
    jobs with the same claim. Absent: in the pod, gone with it; locally always in the folder of the runs."""

    def without_fixed_defaults(self) -> Self:
        """Without `startTimeout` where it has its default and is used."""
        is_default = self.start_timeout == DEFAULT_START_TIMEOUT and self.min_nodes is not None
        return self.model_copy(update={"start_timeout": None}) if is_default else self


class Restart(ApiModel, scope=Scope.NOW):
    """How often training is started again. A restart resumes from the last committed checkpoint."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts of each stage after failures of its own. Those of the training are refilled when a new checkpoint is
    committed. A failure that repeats unchanged ends the run sooner."""

    max_disruptions: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Restarts after evictions, preemptions and other losses that the training did not cause."""


class Budget(ApiModel, scope=Scope.NOW):
    """What a run may use up. What is over it is stopped with its state saved, and has failed."""

    deadline: Duration | None = None
    """Time from the start of the run to its end, waiting and restarts included. Time in which the job is suspended does
    not count."""
