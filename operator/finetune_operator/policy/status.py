"""Conditions and phase after a step."""

from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import (
    Condition,
    DisplayStatus,
    OverfittingStatus,
    ProgressStatus,
    PromotionOutcome,
    PromotionStatus,
    Status,
)
from finetune_api.v1alpha1.quantities import short_duration

from ..manifests import Manifest
from .grace import StopSafety

MAX_MESSAGE = 4096
"""Maximum length of the message of a condition."""
_ONLY_IF_KNOWN = frozenset(
    {
        ConditionType.SAFE_TO_STOP,
        ConditionType.CHECKPOINT_STALE,
        ConditionType.PROMOTED,
        ConditionType.OVERFITTING,
    }
)
"""Conditions that are removed when they do not apply, for example in a new run."""
_PROMOTION_REASONS = {
    PromotionOutcome.PROMOTED: Reason.PROMOTED,
    PromotionOutcome.REFUSED: Reason.PROMOTION_REFUSED,
    PromotionOutcome.CONFLICT: Reason.PROMOTION_CONFLICT,
}
_AT_REST = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED})
"""Phases without a run in progress. In all others, tools that follow kstatus, such as Flux and Argo CD, must wait for
the result."""
_NOT_READY = frozenset({Phase.PENDING, Phase.RESTARTING, Phase.FAILED, Phase.SUSPENDED, Phase.SUSPENDING})


@dataclass(frozen=True)
class StatusNotes:
    """Information for the conditions in addition to the step."""

    violations: tuple[Violation, ...] = ()
    """Violations of the object while its run continues with the last valid spec."""
    waiting: str = ""
    """Why pods of the active stage are not running."""
    queued: str = ""
    """Why the Job of the active stage has not been admitted by its queue."""
    unknown_fields: tuple[Violation, ...] = ()
    """Fields that the user applied and the API server dropped."""
    pending: str = ""
    """Changes of the spec that are not in effect yet."""
    grace: StopSafety | None = None
    """Whether the running attempt can be stopped without losing work."""
    late: str | None = None
    """Why a crash would lose more work than the spec allows; empty: it would not. None: unknown."""


def rejected(status: Status, violations: tuple[Violation, ...], *, generation: int, now: str) -> Status:
    """Return the status of an invalid object, with all violations."""
    message = _violations_message(violations)
    return _with_conditions(
        status.model_copy(update={"phase": Phase.INVALID, "observed_generation": generation}),
        {
            ConditionType.ACCEPTED: (False, Reason.INVALID_SPEC, message),
            **_invalid_spec(message),
            ConditionType.READY: (False, Reason.INVALID_SPEC, ""),
        },
        generation=generation,
        now=now,
    )


def merged_into_unreadable(written: Manifest, rejection: Status) -> Manifest:
    """Add the conditions of a rejection to a status that a newer operator wrote and that cannot be read.

    Everything else is kept, so that the newer operator can continue from it. In particular, unreadable fields are kept:
    without them the status would become readable, and decisions would be based on an incomplete status.
    """
    added = rejection.model_dump(mode="json", by_alias=True, exclude_none=True)["conditions"]
    conditions = {entry.get("type"): entry for entry in written.get("conditions") or ()}
    for entry in added:
        old = conditions.get(entry["type"])
        if old is None:
            conditions[entry["type"]] = entry
        elif _is_readable(old):
            is_same = old["status"] == entry["status"]
            since = old["lastTransitionTime"] if is_same else entry["lastTransitionTime"]
            conditions[entry["type"]] = {**entry, "lastTransitionTime": since}
    return {**written, "conditions": [*conditions.values()]}


def _is_readable(condition: Manifest) -> bool:
    try:
        Condition.model_validate(condition)
    except ValidationError:
        return False
    return True


def blocked(status: Status, reason: Reason, message: str, *, notes: StatusNotes, generation: int, now: str) -> Status:
    """Return the status while the cluster rejects a call. The call is retried, and the user may be able to help.

    A run that has ended keeps its phase: only the removal of its children is rejected.
    """
    message, has_ended = message[:MAX_MESSAGE], status.terminal_condition is not None
    conditions = {
        ConditionType.ACCEPTED: _accepted(notes),
        ConditionType.RECONCILING: (False, reason, ""),
        ConditionType.STALLED: (True, reason, message),
    }
    if not has_ended:
        conditions[ConditionType.READY] = (False, reason, message)
    phase = status.phase if has_ended else Phase.PENDING
    return _with_conditions(
        status.model_copy(update={"phase": phase, "observed_generation": generation}),
        conditions,
        generation=generation,
        now=now,
    )


Summary = tuple[Phase, Reason, str]
"""Phase of a job, and reason and message of its conditions."""


class Summarized(Protocol):
    """A step, as far as status needs it."""

    def summary(self, status: Status) -> Summary:
        """Return phase, reason and message after the step. `status` contains what the step records."""


def status_after(
    status: Status, step: Summarized, *, generation: int, now: str, notes: StatusNotes = StatusNotes()
) -> Status:
    """Return the status after a step. `status` contains what the step records."""
    phase, reason, message = step.summary(status)
    if notes.waiting:
        phase, reason, message = Phase.PENDING, Reason.WAITING_FOR_PODS, notes.waiting[:MAX_MESSAGE]
    if notes.queued:
        phase, reason, message = Phase.PENDING, Reason.QUEUED, notes.queued[:MAX_MESSAGE]
    conditions: dict[ConditionType, tuple[bool, Reason, str]] = {
        ConditionType.ACCEPTED: _accepted(notes),
        ConditionType.SUSPENDED: (phase is Phase.SUSPENDED, reason, message if phase is Phase.SUSPENDED else ""),
        ConditionType.RECONCILING: (
            phase not in _AT_REST or bool(notes.pending),
            Reason.NEXT_ATTEMPT if notes.pending else reason,
            notes.pending or message,
        ),
        ConditionType.STALLED: (phase is Phase.FAILED, reason, message),
        **(_invalid_spec(_continues_message(notes)) if notes.violations else {}),
        ConditionType.READY: (phase not in _NOT_READY and reason is not Reason.RESTARTING, reason, message),
        ConditionType.MODEL_AVAILABLE: _model_available(status),
        ConditionType.COMPLETE: (phase is Phase.SUCCEEDED, reason, message),
        ConditionType.FAILED: (phase is Phase.FAILED, reason, message),
    }
    conditions |= _while_training(notes) | _promoted(status) | _overfitting(status)
    kept = tuple(entry for entry in status.conditions if entry.type in conditions or entry.type not in _ONLY_IF_KNOWN)
    update = {
        "phase": phase,
        "observed_generation": generation,
        "conditions": kept,
        "display": _display(status.run.progress),
    }
    return _with_conditions(status.model_copy(update=update), conditions, generation=generation, now=now)


def _model_available(status: Status) -> tuple[bool, Reason, str]:
    """A trained model stays available if its evaluation fails."""
    if status.run.artifact is None:
        return False, Reason.NOT_TRAINED, ""
    return True, Reason.EXPORTED, status.run.artifact.uri


def _promoted(status: Status) -> dict[ConditionType, tuple[bool, Reason, str]]:
    """Return the condition of a promotion that was decided. A refused one is no failure."""
    promotion = status.run.promotion
    if promotion is None:
        return {}
    holds = promotion.outcome is PromotionOutcome.PROMOTED
    return {ConditionType.PROMOTED: (holds, promotion_reason(promotion), promotion.message)}


def _overfitting(status: Status) -> dict[ConditionType, tuple[bool, Reason, str]]:
    """Return the condition with the losses that the training has compared. It does not end with the training."""
    seen = status.run.overfitting
    if seen is None:
        return {}
    reason = Reason.TRAINING_OVERFITS if seen.found else Reason.NO_OVERFITTING
    return {ConditionType.OVERFITTING: (seen.found, reason, _losses(seen))}


def _losses(seen: OverfittingStatus) -> str:
    gap = f"training loss {seen.training_loss:.4g}, validation loss {seen.validation_loss:.4g}"
    if seen.step == seen.lowest_step:
        return f"step {seen.step}: {gap}, the lowest so far"
    slope = (seen.validation_loss - seen.lowest_validation_loss) / (seen.step - seen.lowest_step)
    return (
        f"step {seen.step}: {gap}; since its lowest value, {seen.lowest_validation_loss:.4g} at step "
        f"{seen.lowest_step}, the validation loss has changed by {slope:+.3g} per step, and the training loss from "
        f"{seen.training_loss_at_lowest:.4g} to {seen.training_loss:.4g}"
    )


def promotion_reason(promotion: PromotionStatus) -> Reason:
    """Return the reason of the condition and of the Event."""
    return _PROMOTION_REASONS[promotion.outcome]


def _while_training(notes: StatusNotes) -> dict[ConditionType, tuple[bool, Reason, str]]:
    """Return the conditions that only a running training has, if it has reported the values."""
    found: dict[ConditionType, tuple[bool, Reason, str]] = {}
    if notes.grace is not None:
        safe = notes.grace.is_safe
        reason = Reason.SAVE_FITS if safe else Reason.SAVE_TOO_SLOW
        found[ConditionType.SAFE_TO_STOP] = (safe, reason, notes.grace.message)
    if notes.late is not None:
        late = notes.late[:MAX_MESSAGE]
        reason = Reason.CHECKPOINT_LATE if late else Reason.CHECKPOINT_IN_TIME
        found[ConditionType.CHECKPOINT_STALE] = (bool(late), reason, late)
    return found


def _invalid_spec(message: str) -> dict[ConditionType, tuple[bool, Reason, str]]:
    """Return the conditions of kstatus for an invalid spec, also while a run continues: the run will not satisfy it.

    Reconciling is False then, because kstatus uses whichever of the two is True and comes first.
    """
    return {
        ConditionType.RECONCILING: (False, Reason.INVALID_SPEC, ""),
        ConditionType.STALLED: (True, Reason.INVALID_SPEC, message),
    }


def _violations_message(violations: tuple[Violation, ...]) -> str:
    return "\n".join(map(str, violations))[:MAX_MESSAGE]


def _continues_message(notes: StatusNotes) -> str:
    return f"the run continues with the last valid spec:\n{_violations_message(notes.violations)}"[:MAX_MESSAGE]


def _accepted(notes: StatusNotes) -> tuple[bool, Reason, str]:
    """Return the condition Accepted. A valid object with dropped fields is accepted with another reason."""
    if notes.violations:
        return False, Reason.INVALID_SPEC, _continues_message(notes)
    if not notes.unknown_fields:
        return True, Reason.VALID, ""
    lines = ("the API server dropped unknown fields:", *map(str, notes.unknown_fields))
    return True, Reason.UNKNOWN_FIELDS, "\n".join(lines)[:MAX_MESSAGE]


def _display(progress: ProgressStatus | None) -> DisplayStatus | None:
    if progress is None or not progress.total_steps:
        return None
    return DisplayStatus(
        progress=f"{progress.percent}%",
        loss="" if progress.loss is None else f"{progress.loss:.4g}",
        eta="" if progress.eta_seconds is None else short_duration(progress.eta_seconds),
    )


def _with_conditions(
    status: Status, wanted: dict[ConditionType, tuple[bool, Reason, str]], *, generation: int, now: str
) -> Status:
    """`last_transition_time` changes only with the status of the condition, as the API conventions of Kubernetes
    require."""
    before = {condition.type: condition for condition in status.conditions}
    for kind, (holds, reason, message) in wanted.items():
        value = "True" if holds else "False"
        old = before.get(kind)
        before[kind] = Condition(
            type=kind,
            status=value,
            reason=reason,
            message=message,
            last_transition_time=old.last_transition_time if old and old.status == value else now,
            observed_generation=generation,
        )
    return status.model_copy(update={"conditions": tuple(before[kind] for kind in ConditionType if kind in before)})
