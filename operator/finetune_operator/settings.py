"""Settings of the operator that apply to all jobs."""

from dataclasses import dataclass, field

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Spec

from .job_policy.model import JobPolicy
from .manifests import Manifest
from .pod_defaults import PodDefaults


@dataclass(frozen=True)
class PodAdditions:
    """Additions to all trainer pods, such as a certificate bundle, a proxy address or a shared file system."""

    volumes: tuple[Manifest, ...] = ()
    volume_mounts: tuple[Manifest, ...] = ()
    """Mounts of the trainer container."""
    env: tuple[Manifest, ...] = ()
    """Environment of the trainer container. Variables of the job take precedence."""
    defaults: PodDefaults = field(default_factory=PodDefaults)
    """Placement, priority and pull secrets of jobs that leave them out."""


@dataclass(frozen=True)
class GraceLimits:
    """Bounds of a grace period."""

    least_seconds: int = 120
    """Minimum. The grace period is longer if saves take longer."""
    most_seconds: int = 3600
    """Maximum; evictions and drains may take this long."""


@dataclass(frozen=True)
class OperatorSettings:
    """Defaults for all jobs. Fields of the job take precedence."""

    trainer_image: str = "finetune-trainer:0.1.0"
    """Image of trainer pods if the job does not set one."""
    credentials_secret: str = ""
    """Secret with storage credentials in the namespace of the job, if the job does not set one."""
    additions: PodAdditions = field(default_factory=PodAdditions)
    """Additions to all trainer pods."""
    run_as_user: int | None = 10001
    """User, group and fsGroup of trainer pods; a fixed user keeps the ownership of cached files the same across pods.
    None: assigned by the cluster, as on OpenShift."""
    ephemeral_storage: str = "1Gi"
    """Request of trainer pods if the job does not set one, for data, logs and exports on disk. `0`: none."""
    storage: StorageSettings = field(default_factory=StorageSettings)
    """Object storage if the job does not set one."""
    operator_namespace: str = ""
    """Namespace of the operator. Each attempt gets a NetworkPolicy that allows traffic among its own pods, and from the
    operator in this namespace to their progress. Empty: none."""
    has_queues: bool = True
    """Whether `spec.workers.queue` has an effect. Local runs have no queues."""
    gang_scheduling: bool = True
    """Whether the workers of a training attempt are placed on nodes together, if the cluster serves PodGroups."""
    policy: JobPolicy | None = None
    """What jobs may use; None: everything in their namespace."""
    termination_grace: GraceLimits = field(default_factory=GraceLimits)
    """Bounds of the grace period of training pods."""
    progress_seconds: float = 5
    """Interval in which the progress of a running stage is read."""
    waiting_seconds: float = 0.0
    """Minimum interval of reconciles of jobs whose pods wait for the cluster; longer if many jobs wait."""
    max_backoff_seconds: float = 300.0
    """Longest wait before a restart."""

    def queue(self, spec: Spec) -> str:
        """Return the queue of training attempts; empty: none."""
        return (spec.workers.queue or self.additions.defaults.workers.queue or "") if self.has_queues else ""
