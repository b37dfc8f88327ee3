"""What whoever runs the operator decides for all jobs."""

from dataclasses import dataclass, field

from finetune_api.trainer_config import StorageSettings

from .manifests import Manifest


@dataclass(frozen=True)
class PodAdditions:
    """What a site's pods need beside their own: a certificate bundle, a proxy's address, a shared file system."""

    volumes: tuple[Manifest, ...] = ()
    volume_mounts: tuple[Manifest, ...] = ()
    """Of the trainer container."""
    env: tuple[Manifest, ...] = ()
    """Of the trainer container; what a job sets itself wins."""


@dataclass(frozen=True)
class GraceLimits:
    """Bounds of a grace period."""

    least_seconds: int = 120
    """More, where a save was seen to take longer."""
    most_seconds: int = 3600
    """For so long may an eviction or the drain of a node have to wait."""


@dataclass(frozen=True)
class OperatorSettings:
    """Defaults for all jobs; a field of the job wins where there is one."""

    trainer_image: str = "finetune-trainer:0.1.0"
    """Image of the trainer pods of jobs that name none."""
    credentials_secret: str = ""
    """Secret with storage credentials, in each job's own namespace, for jobs that name none."""
    additions: PodAdditions = field(default_factory=PodAdditions)
    """What every trainer pod gets besides."""
    run_as_user: int | None = 10001
    """User, group and fsGroup of trainer pods; a fixed one keeps the ownership of cached files the same over pods.
    None: the cluster chooses, as OpenShift does."""
    ephemeral_storage: str = "1Gi"
    """Request of trainer pods of jobs that name none: data, logs and exports on the node's disk. `0`: none."""
    storage: StorageSettings = field(default_factory=StorageSettings)
    """Object storage of jobs that name none."""
    termination_grace: GraceLimits = field(default_factory=GraceLimits)
    """What a pod gets to save its state after SIGTERM."""
    progress_seconds: float = 5.0
    """How often the progress of a running stage is pulled."""
    waiting_seconds: float = 0.0
    """How long what waits for its cluster is left alone at least; more where many wait."""
    max_backoff_seconds: float = 300.0
    """Longest wait before a restart."""
