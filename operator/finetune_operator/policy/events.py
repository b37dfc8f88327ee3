"""Events on the FineTuneJob, one for each transition of a run, in a readable order."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import AttemptStatus, RunTrigger, Status

from . import transitions
from .runs import newest_number
from .status import promotion_reason

_WARNINGS = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.UNKNOWN_FIELDS,
        Reason.SAVE_TOO_SLOW,
        Reason.CHECKPOINT_LATE,
        Reason.TRAINING_OVERFITS,
        Reason.WAITING_FOR_PODS,
        Reason.FEWER_WORKERS,
        Reason.CANNOT_CREATE,
        Reason.CHILD_CONFLICT,
        Reason.PROMOTION_REFUSED,
        Reason.PROMOTION_CONFLICT,
        Reason.PREPARE_FAILED,
        Reason.EVALUATE_FAILED,
        Reason.PERMANENT_FAILURE,
        Reason.RESTARTS_EXHAUSTED,
        Reason.REPEATED_FAILURE,
        Reason.DISRUPTIONS_EXHAUSTED,
        Reason.DEADLINE_EXCEEDED,
    }
)
_NOTES = frozenset(
    {
        Reason.UNKNOWN_FIELDS,
        Reason.NEXT_ATTEMPT,
        Reason.SAVE_TOO_SLOW,
        Reason.CHECKPOINT_LATE,
        Reason.TRAINING_OVERFITS,
    }
)

_CAUSES = {
    RunTrigger.SPEC: "the spec was changed",
    RunTrigger.SCHEDULE: "a scheduled time passed",
    RunTrigger.DATA: "the source files have changed",
}


@dataclass(frozen=True)
class JobEvent:
    """Content of an Event."""

    reason: Reason
    message: str
    is_warning: bool
    identity: str
    """Equal for the same transition of the same run, so that a repeated reconcile does not create a second Event."""


def job_events(before: Status, after: Status) -> tuple[JobEvent, ...]:
    """Return the Events for the transitions between two states of a job."""
    kinds = (_ended_attempts, _new_run, _promotion, _phase_changed, _resumed, _warnings, _notes)
    return tuple(event for kind in kinds for event in kind(before, after))


def _ended_attempts(before: Status, after: Status) -> Iterator[JobEvent]:
    for attempt in transitions.ended(before, after):
        if attempt.outcome is not None and attempt.outcome.is_failure:
            failed = f"{attempt.stage} attempt {attempt.number} failed: {attempt.reason}"
            message = _with_cause(failed, attempt, after)
            yield JobEvent(Reason.ATTEMPT_FAILED, message, True, f"{attempt.job_name}.failed")


def _with_cause(message: str, attempt: AttemptStatus, after: Status) -> str:
    failure = after.run.failure
    if failure is None or (failure.stage, failure.attempt) != (attempt.stage, attempt.number):
        return message
    place = f" in {failure.pod}" if failure.pod else ""
    place += f" on {failure.node}" if failure.node else ""
    error = failure.message.partition("\n")[0]
    return "\n".join(filter(None, [f"{message}{place}: {error}" if error else f"{message}{place}", failure.advice]))


def _resumed(before: Status, after: Status) -> Iterator[JobEvent]:
    """Report the cost of a restart. It is known when the next attempt has completed a step."""
    for step in transitions.first_steps(before, after):
        attempt, at = step.attempt, step.attempt.resumed_from_step
        if step.is_restart:
            start = "starts from the base model" if at is None else f"resumes at step {at}"
            message = f"train attempt {attempt.number} {start}"
            if step.cost is not None:
                message += f", {step.cost.restart_seconds:.0f} s after the last attempt"
                message += f"; repeated steps: {step.cost.steps}"
            yield JobEvent(Reason.RESUMED, message, False, f"{attempt.job_name}.resumed")


def _warnings(before: Status, after: Status) -> Iterator[JobEvent]:
    known = before.run.warnings if before.run.number == after.run.number else ()
    for warning in after.run.warnings:
        if warning not in known:
            identity = f"r{after.run.number}.{hashlib.sha256(warning.encode()).hexdigest()[:12]}"
            yield JobEvent(Reason.STAGE_WARNING, warning, True, identity)


def _new_run(before: Status, after: Status) -> Iterator[JobEvent]:
    old, new = before.run.number, after.run.number
    if not old or new == old:
        return
    if new <= newest_number(before):
        message = f"the spec was changed back: run {new} is the current run again, instead of run {old}"
        identity = f"r{new}.reused.g{after.observed_generation}"
    else:
        message, identity = f"{_CAUSES[after.run.trigger]}: run {new} replaces run {old}", f"r{new}.changed"
    reason = Reason.SPEC_CHANGED if after.run.trigger is RunTrigger.SPEC else Reason.NEW_RUN
    yield JobEvent(reason, "\n".join([message, *after.run.changes]), False, identity)


def _promotion(before: Status, after: Status) -> Iterator[JobEvent]:
    """Report every decision, also a repeated one: its figures may differ."""
    promotion = after.run.promotion
    known = before.run.promotion if before.run.number == after.run.number else None
    if promotion is None or promotion == known:
        return
    reason, was = promotion_reason(promotion), f"; promoted before: {promotion.previous}" if promotion.previous else ""
    now = f"; promoted now: {promotion.uri}{was}" if promotion.uri else ""
    identity = f"r{after.run.number}.{after.run.attempt}.{promotion.time or ''}.{reason}"
    yield JobEvent(reason, f"{promotion.message}{now}", reason in _WARNINGS, identity)


def _phase_changed(before: Status, after: Status) -> Iterator[JobEvent]:
    """A new phase, or a new reason for not being ready."""
    old, new = _ready(before), _ready(after)
    if new is None or (_place(before), old and old[0]) == (_place(after), new[0]):
        return
    reason, message = new
    if reason is Reason.SPEC_CHANGED:
        return  # reported as a new run
    text = message or f"run {after.run.number}" + (
        f", {after.run.stage} attempt {after.run.attempt}" if after.run.stage else ""
    )
    place = f"{after.observed_generation}" if after.phase is Phase.INVALID else f"{after.run.stage}.{after.run.attempt}"
    yield JobEvent(reason, text, reason in _WARNINGS, f"r{after.run.number}.{place}.{reason}")


def _notes(before: Status, after: Status) -> Iterator[JobEvent]:
    """Report conditions that do not change the phase, when their reason changes."""
    known = {(entry.type, entry.reason) for entry in before.conditions if before.run.number == after.run.number}
    for entry in after.conditions:
        is_invalid = entry.type is ConditionType.ACCEPTED and entry.reason is Reason.INVALID_SPEC
        # An invalid object that has no run in progress changes the phase, which `_phase_changed` reports.
        is_note = entry.reason in _NOTES or (is_invalid and after.phase is not Phase.INVALID)
        if is_note and (entry.type, entry.reason) not in known:
            identity = (
                f"r{after.run.number}.{after.run.stage}.{after.run.attempt}.g{after.observed_generation}.{entry.reason}"
            )
            yield JobEvent(entry.reason, entry.message, entry.reason in _WARNINGS, identity)


def _place(status: Status) -> tuple[object, ...]:
    return (status.phase, status.run.number, status.run.stage, status.run.attempt)


def _ready(status: Status) -> tuple[Reason, str] | None:
    return next(
        ((entry.reason, entry.message) for entry in status.conditions if entry.type is ConditionType.READY), None
    )
