"""What a restart rule is, and what rules have in common: back-off, and when two failures are the same."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from finetune_api.backoff import backoff_seconds
from finetune_api.constants import Reason, Stage
from finetune_api.exit_codes import ExitCode, name_of
from finetune_api.v1alpha1 import AttemptStatus, Outcome, Restart, Status

from ...observed import EVICTED

FIRST_BACKOFF_SECONDS = 10.0


class Sameness(Enum):
    """When two failures of the same class and stage are the same failure."""

    ALWAYS = auto()
    """Message, step and exit code do not matter: amounts of memory and the step of a NaN differ between attempts, and
    memory may be exhausted for the framework (80) in one and for the kernel (137) in the next."""
    SAME_MESSAGE_AND_STEP = auto()
    """Exit code, message and step are the same."""
    NEVER = auto()
    """The cause is outside of the job and may be gone: `restart.maxRestarts` alone is the limit."""


_SAMENESS: Mapping[str, Sameness] = {
    name_of(ExitCode.OUT_OF_MEMORY): Sameness.ALWAYS,
    name_of(ExitCode.DIVERGED): Sameness.ALWAYS,
    EVICTED: Sameness.ALWAYS,
    name_of(ExitCode.STORAGE_UNREACHABLE): Sameness.NEVER,
    name_of(ExitCode.HUNG): Sameness.NEVER,
    "Signal9": Sameness.NEVER,
    "Signal15": Sameness.NEVER,
}
"""By exit class. Any other class, above all InternalError: SAME_MESSAGE_AND_STEP."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt, and what a rule may consider."""

    status: Status
    """The end of the attempt is charged already."""
    limits: Restart
    """`spec.restart`."""
    max_backoff_seconds: float

    @property
    def attempt(self) -> AttemptStatus:
        """The attempt that failed."""
        return self.status.run.attempts[-1]

    def retry(self, tries: int, change: "PlanChange | None" = None) -> "Retry":
        """Another attempt: at once, then after 10 s, doubling. Most failures are a lost process, not a broken input.

        After 10 s at least where the node itself was the obstacle: the next attempt would find it unchanged.
        """
        is_of_the_node = self.attempt.outcome is Outcome.REJECTED or self.attempt.reason == EVICTED
        waits = max(1, tries) if is_of_the_node else tries - 1
        if waits <= 0:
            return Retry(0.0, change)
        return Retry(backoff_seconds(waits - 1, FIRST_BACKOFF_SECONDS, self.max_backoff_seconds), change)


@dataclass(frozen=True)
class PlanChange:
    """How the plan of the next training attempt differs from the one before."""

    reason: str
    micro_batch_limit: int | None = None
    """Most examples per process and forward pass. The global batch stays the same."""


@dataclass(frozen=True)
class Retry:
    """Start the next attempt, this long after the failed one ended."""

    delay_seconds: float
    change: PlanChange | None = None
    """How the plan of the next training attempt differs."""


@dataclass(frozen=True)
class GiveUp:
    """The run has failed."""

    reason: Reason
    message: str


Action = Retry | GiveUp


@dataclass(frozen=True)
class Rule:
    """One entry of the table."""

    name: str
    order: int
    """Rules with a lower order are tried first."""
    decide: Callable[[Failure], Action | None]
    """None: the rule does not apply."""


def disruptions_in_a_row(attempts: Sequence[AttemptStatus]) -> int:
    """Attempts at the end of the list, of one stage, that were disrupted or rejected before their first step."""
    count = 0
    for entry in reversed(attempts):
        is_disrupted = entry.outcome in {Outcome.DISRUPTION, Outcome.REJECTED} and not entry.superseded_by_spec_change
        if not is_disrupted or entry.stage is not attempts[-1].stage or entry.first_step_time:
            break
        count += 1
    return count


def identical_failures(status: Status) -> int:
    """How often the last attempt's stage has failed as that attempt did, without a new checkpoint in between.

    Disruptions and requested stops in between do not count, and do not end the series.
    """
    last = status.run.attempts[-1]
    newest = None if status.run.last_checkpoint is None else status.run.last_checkpoint.step
    count = 0
    for entry in reversed(status.run.attempts):
        if entry.stage is not last.stage or entry.superseded_by_spec_change:
            break
        if (
            entry.stage is Stage.TRAIN
            and entry is not last
            and (entry.known_checkpoint_step or 0) != (last.known_checkpoint_step or 0)
        ):
            break
        if entry.outcome is Outcome.RETRYABLE:
            if not is_same_failure(entry, last):
                break
            count += 1
    has_saved = last.stage is Stage.TRAIN and (newest or 0) > (last.known_checkpoint_step or 0)
    return min(count, 1) if has_saved else count


def is_same_failure(one: AttemptStatus, other: AttemptStatus) -> bool:
    """Whether two failed attempts at a stage have failed in the same way, as `_SAMENESS` has it."""
    if one.reason != other.reason:
        return False
    match _SAMENESS.get(one.reason, Sameness.SAME_MESSAGE_AND_STEP):
        case Sameness.ALWAYS:
            return True
        case Sameness.NEVER:
            return one is other
    return (one.exit_code, _plain(one), one.last_step) == (other.exit_code, _plain(other), other.last_step)


def _plain(attempt: AttemptStatus) -> str:
    """Its message without what differs between two attempts: names of pods, addresses of objects in memory."""
    pods = re.escape(attempt.job_name) + r"-\d+(-[a-z0-9]{5})?"
    return re.sub(rf"{pods}|\b0x[0-9a-f]+\b", "", attempt.message)
