"""The input of a plan: what a reconcile has observed."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.clock import rfc3339
from finetune_api.progress import Progress
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import FineTuneJob, Spec

from ..manifests import Manifest
from ..observed import Observed
from ..settings import OperatorSettings


@dataclass(frozen=True)
class Facts:
    """Everything that a plan depends on."""

    manifest: Manifest
    """The FineTuneJob as it was read."""
    job: FineTuneJob
    """The parsed object. If it has violations, only the part of its spec that applies."""
    settings: OperatorSettings
    now: datetime
    observed: Observed
    """The children."""
    progress: Progress | None = None
    """Report of rank 0 of the active stage; None: it did not respond, or no stage is active."""
    warnings: tuple[Manifest, ...] = ()
    """Warning Events for pods that are late and do not report a reason, oldest first."""
    queue_reason: str = ""
    """Why Kueue does not admit the Job of the active stage; empty: it is not known, or there is none."""
    violations: tuple[Violation, ...] = ()
    """Violations of the object."""
    awaits_end: bool = False
    """Whether the object describes another run, which waits for the end of the current one. Then `job` has the values
    of the current run."""

    @property
    def spec(self) -> Spec:
        """The spec, or the part of it that applies."""
        return self.job.spec

    @property
    def is_valid(self) -> bool:
        """Whether the object has no violations. Otherwise nothing is started; a run in progress continues."""
        return not self.violations

    @property
    def stamp(self) -> str:
        """The time as it is written to objects, RFC 3339."""
        return rfc3339(self.now)
