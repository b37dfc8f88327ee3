"""The effects of a reconcile as data. `reconcile` executes the actions of a plan in their order."""

from dataclasses import dataclass
from enum import Enum, auto

from finetune_api.evaluation_needs import EvaluationNeeds
from finetune_api.trainer_config import TrainerConfig

from ..manifests import Manifest
from .events import JobEvent


@dataclass(frozen=True)
class CreateChildren:
    """Create the children of an attempt. Those that exist are kept."""

    config: TrainerConfig
    """Configuration of the attempt."""
    needs: EvaluationNeeds
    """Size of the evaluation."""
    grace_seconds: int | None = None
    """Grace period of its pods; None: the minimum of the settings."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job with its ConfigMap, Service, PodGroup and pods. Its pods get SIGTERM and their grace period."""

    name: str
    uid: str
    has_gang: bool = False
    """Whether it has a PodGroup."""


@dataclass(frozen=True)
class CreateEvent:
    """Create an Event on the FineTuneJob. One that exists is kept."""

    event: JobEvent


@dataclass(frozen=True)
class UpdateStatus:
    """Replace the status of the FineTuneJob that was read."""

    content: Manifest


Action = CreateChildren | DeleteJob | CreateEvent | UpdateStatus


class RequeueReason(Enum):
    """Why a job is reconciled again after a time."""

    PROGRESS = auto()
    """An attempt is running and its progress is read."""
    WAITING = auto()
    """Pods wait for resources, or the cluster rejects a request. A watch reports most changes."""
    DUE = auto()
    """Something is due at that time and not before."""


@dataclass(frozen=True)
class Requeue:
    """When a job is reconciled again, and why."""

    seconds: float | None = None
    """Seconds until the next reconcile without an event; None: only after an event."""
    reason: RequeueReason = RequeueReason.DUE

    def no_later_than(self, seconds: float) -> "Requeue":
        """Return the requeue, which happens after this time even without an event."""
        if self.seconds is None:
            return Requeue(max(0.0, seconds))
        return self.at_most(max(0.0, seconds))

    def at_most(self, seconds: float | None) -> "Requeue":
        """Return the requeue with a limit of the time; None: no limit."""
        if self.seconds is None or seconds is None:
            return self
        return Requeue(min(self.seconds, seconds), self.reason)
