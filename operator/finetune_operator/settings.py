"""What whoever runs the operator decides for all jobs."""

from dataclasses import dataclass, field

from finetune_api.trainer_config import StorageSettings


@dataclass(frozen=True)
class OperatorSettings:
    """Defaults for all jobs; a field of the job wins where there is one."""

    trainer_image: str = "finetune-trainer:0.1.0"
    """Image of every trainer pod."""
    storage: StorageSettings = field(default_factory=StorageSettings)
    """Object storage of jobs that name none."""
    termination_grace_seconds: int = 120
    """How long a pod may take to save its state after SIGTERM."""
    progress_seconds: float = 2.0
    """How often the progress of a running stage is pulled."""
    max_backoff_seconds: float = 300.0
    """Longest wait before a restart."""
