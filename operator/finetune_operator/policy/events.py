"""What is announced on the object itself: each turn of a run once, in the order in which a reader wants it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import AttemptStatus, Outcome, Status

from . import transitions

_FAILURES = frozenset({Outcome.PERMANENT, Outcome.RETRYABLE, Outcome.DISRUPTION, Outcome.REJECTED})
_WARNINGS = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.UNKNOWN_FIELDS,
        Reason.SAVE_TOO_SLOW,
        Reason.CHECKPOINT_LATE,
        Reason.WAITING_FOR_PODS,
        Reason.FEWER_WORKERS,
        Reason.CANNOT_CREATE,
        Reason.CHILD_CONFLICT,
        Reason.PREPARE_FAILED,
        Reason.EVALUATE_FAILED,
        Reason.PERMANENT_FAILURE,
        Reason.RESTARTS_EXHAUSTED,
        Reason.REPEATED_FAILURE,
        Reason.DISRUPTIONS_EXHAUSTED,
        Reason.DEADLINE_EXCEEDED,
    }
)
_REMARKS = frozenset({Reason.UNKNOWN_FIELDS, Reason.NEXT_ATTEMPT, Reason.SAVE_TOO_SLOW, Reason.CHECKPOINT_LATE})


@dataclass(frozen=True)
class Announcement:
    """One Event."""

    reason: str
    message: str
    is_warning: bool
    identity: str
    """The same turn of the same run has the same one, however often it is looked at."""


def announcements(before: Status, after: Status) -> tuple[Announcement, ...]:
    """The transitions between two states of a job."""
    kinds = (_ended_attempts, _new_run, _turn, _resumed, _warnings, _remarks)
    return tuple(told for kind in kinds for told in kind(before, after))


def _ended_attempts(before: Status, after: Status) -> Iterator[Announcement]:
    for attempt in transitions.ended(before, after):
        if attempt.outcome in _FAILURES:
            told = f"{attempt.stage} attempt {attempt.number} failed: {attempt.reason}"
            yield Announcement("AttemptFailed", _with_cause(told, attempt, after), True, f"{attempt.job_name}.failed")


def _with_cause(told: str, attempt: AttemptStatus, after: Status) -> str:
    failure = after.run.failure
    if failure is None or (failure.stage, failure.attempt) != (attempt.stage, attempt.number):
        return told
    place = f" in {failure.pod}" if failure.pod else ""
    place += f" on {failure.node}" if failure.node else ""
    said = failure.message.partition("\n")[0]
    return "\n".join(filter(None, [f"{told}{place}: {said}" if said else f"{told}{place}", failure.advice]))


def _resumed(before: Status, after: Status) -> Iterator[Announcement]:
    """What the end of the attempt before has cost, once it is known: when the next one has done a step."""
    for step in transitions.first_steps(before, after):
        attempt, at = step.attempt, step.attempt.resumed_from_step
        if step.is_restart:
            told = f"train attempt {attempt.number} goes on {'from the base model' if at is None else f'at step {at}'}"
            if step.cost is not None:
                told += f", {step.cost.restart_seconds:.0f} s after the last one; steps done again: {step.cost.steps}"
            yield Announcement(str(Reason.RESUMED), told, False, f"{attempt.job_name}.resumed")


def _warnings(before: Status, after: Status) -> Iterator[Announcement]:
    known = before.run.warnings if before.run.number == after.run.number else ()
    for warning in after.run.warnings:
        if warning not in known:
            identity = f"r{after.run.number}.{hashlib.sha256(warning.encode()).hexdigest()[:12]}"
            yield Announcement(str(Reason.STAGE_WARNING), warning, True, identity)


def _new_run(before: Status, after: Status) -> Iterator[Announcement]:
    if before.run.number and after.run.number != before.run.number:
        told = f"the spec means something else now: run {after.run.number} takes the place of run {before.run.number}"
        yield Announcement(str(Reason.SPEC_CHANGED), told, False, f"r{after.run.number}.changed")


def _turn(before: Status, after: Status) -> Iterator[Announcement]:
    """A new phase, or a new reason for not being ready."""
    old, new = _ready(before), _ready(after)
    if new is None or (_place(before), old and old[0]) == (_place(after), new[0]):
        return
    reason, message = new
    if reason is Reason.SPEC_CHANGED:
        return  # told as a new run
    what = message or f"run {after.run.number}" + (
        f", {after.run.stage} attempt {after.run.attempt}" if after.run.stage else ""
    )
    turn = f"{after.observed_generation}" if after.phase is Phase.INVALID else f"{after.run.stage}.{after.run.attempt}"
    yield Announcement(str(reason), what, reason in _WARNINGS, f"r{after.run.number}.{turn}.{reason}")


def _remarks(before: Status, after: Status) -> Iterator[Announcement]:
    """What is worth telling beside the transitions, when it becomes so."""
    known = {(entry.type, entry.reason) for entry in before.conditions if before.run.number == after.run.number}
    for entry in after.conditions:
        is_invalid = entry.type is ConditionType.ACCEPTED and entry.reason is Reason.INVALID_SPEC
        is_remark = entry.reason in _REMARKS or (is_invalid and after.phase is not Phase.INVALID)  # else a turn
        if is_remark and (entry.type, entry.reason) not in known:
            identity = (
                f"r{after.run.number}.{after.run.stage}.{after.run.attempt}.g{after.observed_generation}.{entry.reason}"
            )
            yield Announcement(str(entry.reason), entry.message, entry.reason in _WARNINGS, identity)


def _place(status: Status) -> tuple[object, ...]:
    return (status.phase, status.run.number, status.run.stage, status.run.attempt)


def _ready(status: Status) -> tuple[Reason, str] | None:
    return next(
        ((entry.reason, entry.message) for entry in status.conditions if entry.type is ConditionType.READY), None
    )
