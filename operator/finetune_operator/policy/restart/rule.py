"""Interface of restart rules, and functions they share: back-off, and comparison of failures."""

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
    """Message, step and exit code do not matter: amounts of memory and the step of a NaN differ between attempts. When
    the memory limit is reached, the kernel may kill a rank (80) in one and the whole container (137) in the next."""
    SAME_MESSAGE_AND_STEP = auto()
    """Exit code, message and step are the same."""
    NEVER = auto()
    """The cause is outside of the job and may no longer exist. Only `restart.maxRestarts` limits the restarts."""


_SAMENESS: Mapping[str, Sameness] = {
    name_of(ExitCode.OUT_OF_MEMORY): Sameness.ALWAYS,
    name_of(ExitCode.DIVERGED): Sameness.ALWAYS,
    EVICTED: Sameness.ALWAYS,
    name_of(ExitCode.STORAGE_UNREACHABLE): Sameness.NEVER,
    "Signal9": Sameness.NEVER,
    "Signal15": Sameness.NEVER,
}
"""By exit class. Any other class, above all InternalError: SAME_MESSAGE_AND_STEP."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt, with the information that rules use."""

    status: Status
    """Status that already counts the end of the attempt."""
    limits: Restart
    """`spec.restart`."""
    max_backoff_seconds: float

    @property
    def attempt(self) -> AttemptStatus:
        """The attempt that failed."""
        return self.status.run.attempts[-1]

    def retry(self, tries: int, change: "PlanChange | None" = None) -> "Retry":
        """Return another attempt: immediately the first time, then after 10 s, doubling the delay each time.

        If the node was the cause, the first wait is also 10 s, because an immediate attempt would find it unchanged.
        """
        is_of_the_node = self.attempt.outcome is Outcome.REJECTED or self.attempt.reason == EVICTED
        waits = max(1, tries) if is_of_the_node else tries - 1
        if waits <= 0:
            return Retry(0.0, change)
        return Retry(backoff_seconds(waits - 1, FIRST_BACKOFF_SECONDS, self.max_backoff_seconds), change)


@dataclass(frozen=True)
class PlanChange:
    """Difference between the plans of the next training attempt and the previous one."""

    reason: str
    micro_batch_limit: int | None = None
    """Maximum examples per process and forward pass. The global batch does not change."""


@dataclass(frozen=True)
class Retry:
    """Start the next attempt after a delay, measured from the end of the failed one."""

    delay_seconds: float
    change: PlanChange | None = None
    """Change of the plan of the next training attempt."""


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
    """Count the latest consecutive attempts of a stage that were disrupted or rejected before their first step."""
    count = 0
    for entry in reversed(attempts):
        is_disrupted = entry.outcome in {Outcome.DISRUPTION, Outcome.REJECTED} and not entry.superseded_by_spec_change
        if not is_disrupted or entry.stage is not attempts[-1].stage or entry.first_step_time:
            break
        count += 1
    return count


def identical_failures(status: Status) -> int:
    """Count the consecutive failures of the stage that equal the last one, without a new checkpoint in between.

    Disruptions and requested stops in between do not count and do not end the series.
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
    """Whether two attempts of a stage have failed in the same way, as defined by `_SAMENESS`."""
    if one.reason != other.reason:
        return False
    match _SAMENESS.get(one.reason, Sameness.SAME_MESSAGE_AND_STEP):
        case Sameness.ALWAYS:
            return True
        case Sameness.NEVER:
            return one is other
    return (one.exit_code, _plain(one), one.last_step) == (other.exit_code, _plain(other), other.last_step)


def _plain(attempt: AttemptStatus) -> str:
    """Return the message without names of pods and memory addresses, which differ between attempts."""
    pods = re.escape(attempt.job_name) + r"-\d+(-[a-z0-9]{5})?"
    return re.sub(rf"{pods}|\b0x[0-9a-f]+\b", "", attempt.message)
