"""After a failed attempt: another one, or the end. The whole policy is in this file.

=====================  ======================================================================================
how the attempt ended  what follows
=====================  ======================================================================================
Permanent              the end: the same input would fail again
Retryable              another attempt, at most `restart.maxRestarts` since the stage's last new checkpoint, and
                       only while it does not fail in the same way again (`_SAMENESS`); at once, then after 10 s,
                       20 s and so on
Disruption             another attempt, at most `restart.maxDisruptions` in a run; at once, but after 10 s, 20 s
                       and so on where attempts in a row are disrupted before their first step
Rejected               as a disruption, but never at once: the node that refused the pod may get the next one too
Evicted by a kubelet   as a disruption or, for the job's own use, as Retryable, but never at once: the node is short of
                       memory or disk until it has settled
=====================  ======================================================================================
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from finetune_api.backoff import backoff_seconds
from finetune_api.constants import Reason, Stage
from finetune_api.exit_codes import ExitCode, name_of, out_of_memory_advice
from finetune_api.v1alpha1 import AttemptStatus, Outcome, Status
from finetune_api.v1alpha1 import Restart as RestartSpec

from ..observed import EVICTED

_FIRST_BACKOFF_SECONDS = 10.0
_IDENTICAL_FAILURES = 2
"""So many failures of the same kind without a new checkpoint in between end a run: one retry shows whether the first
was an accident."""


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

_REMEDIES: Mapping[str, str] = {
    name_of(ExitCode.DIVERGED): "lower spec.training.learningRate, add a warmup, or correct the data",
    EVICTED: "raise what status.failure names in spec.workers.resources, or use less of it",
}
_ANY_REMEDY = "correct what status.failure names"


@dataclass(frozen=True)
class Retry:
    """Start the next attempt, this long after the failed one ended."""

    delay_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """The run is over."""

    reason: Reason
    message: str


def decide(status: Status, limits: RestartSpec, *, max_backoff_seconds: float) -> Retry | GiveUp:
    """What follows the last attempt, which has failed. `status` has charged its end already."""
    last = status.attempts[-1]
    match last.outcome:
        case Outcome.PERMANENT:
            return GiveUp(Reason.PERMANENT_FAILURE, "the same input would fail again")
        case Outcome.DISRUPTION | Outcome.REJECTED:
            if status.disruptions > limits.max_disruptions:
                return GiveUp(Reason.DISRUPTIONS_EXHAUSTED, f"disrupted {status.disruptions} times")
            return Retry(_backoff(last, disruptions_in_a_row(status.attempts), max_backoff_seconds))
    if status.restarts > limits.max_restarts:
        told = f"failed {status.restarts} times without a new checkpoint in between"
        return GiveUp(Reason.RESTARTS_EXHAUSTED, told)
    if (count := identical_failures(status)) >= _IDENTICAL_FAILURES:
        told = f"{last.reason} {count} times in the same way, without a new checkpoint in between; another attempt "
        told += f"would fail again: {_remedy(last)}"
        return GiveUp(Reason.REPEATED_FAILURE, told)
    return Retry(_backoff(last, status.restarts, max_backoff_seconds))


def _remedy(attempt: AttemptStatus) -> str:
    if attempt.reason == name_of(ExitCode.OUT_OF_MEMORY):
        return out_of_memory_advice(attempt.stage)
    return _REMEDIES.get(attempt.reason, _ANY_REMEDY)


def _backoff(last: AttemptStatus, tries: int, longest: float) -> float:
    """At once, then 10 s, doubling: most failures are a lost process, not a broken input.

    10 s at least where the node itself was the obstacle: at once, the next attempt would find it as it was.
    """
    is_of_the_node = last.outcome is Outcome.REJECTED or last.reason == EVICTED
    waits = max(1, tries) if is_of_the_node else tries - 1
    return 0.0 if waits <= 0 else backoff_seconds(waits - 1, _FIRST_BACKOFF_SECONDS, longest)


def disruptions_in_a_row(attempts: Sequence[AttemptStatus]) -> int:
    """Attempts at the end of the list, of one stage, that were disrupted or rejected before their first step."""
    count = 0
    for entry in reversed(attempts):
        is_disrupted = entry.outcome in {Outcome.DISRUPTION, Outcome.REJECTED} and not entry.forgiven
        if not is_disrupted or entry.stage is not attempts[-1].stage or entry.first_step_time:
            break
        count += 1
    return count


def identical_failures(status: Status) -> int:
    """How often the last attempt's stage has failed as that attempt did, without a new checkpoint in between.

    Disruptions and requested stops in between do not count, and do not end the series.
    """
    last = status.attempts[-1]
    newest = None if status.last_checkpoint is None else status.last_checkpoint.step
    count = 0
    for entry in reversed(status.attempts):
        if entry.stage is not last.stage or entry.forgiven:
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
