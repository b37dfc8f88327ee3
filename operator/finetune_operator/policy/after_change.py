"""Continue a run that has ended because its spec was changed: retry a failed run, or evaluate a succeeded one again.

The run keeps its number, and completed stages are not repeated.
"""

from finetune_api.constants import TERMINAL_CONDITIONS, ConditionType, Stage
from finetune_api.scopes import spec_hash
from finetune_api.v1alpha1 import AttemptStatus, Outcome, Scope, Spec, Status

from . import in_force
from .pending import evaluation_hash

_NO_REMEDY = frozenset(
    {
        "spec.suspend",
        "spec.ttlSecondsAfterFinished",
        "spec.schedule",
        "spec.data.poll",
        "spec.updatePolicy",
        "spec.reuse",
        "spec.historyLimit",
        "spec.output.keepRuns",
    }
)
"""Fields that cannot make a failed run succeed."""


def retry_hash(spec: Spec) -> str:
    """Return the hash of the fields that may correct a failed run without starting a new one. It is stored in
    status."""
    return spec_hash(spec, {Scope.ATTEMPT, Scope.EVALUATION, Scope.NOW}, without=_NO_REMEDY)


def continued_after_change(status: Status, spec: Spec, now: str) -> Status:
    """Remove the terminal condition if the spec was changed after the run ended in a field that continues it.

    Deadline, restarts and disruptions count from `now`.
    """
    ended = status.terminal_condition
    if ended is None:
        return status
    if ended.type is ConditionType.FAILED and status.run.failed_spec_hash not in {None, retry_hash(spec)}:
        *others, last = status.run.attempts or (None,)
        superseded = () if last is None else (last.model_copy(update={"superseded_by_spec_change": True}),)
        return _reopened(status.with_run(attempts=(*(entry for entry in others if entry), *superseded)), now)
    if ended.type is ConditionType.COMPLETE and needs_evaluation(status, spec):
        return _reopened(status, now)
    return status


def needs_evaluation(status: Status, spec: Spec) -> bool:
    """Whether the last successful evaluation was started with different fields of scope Evaluation.

    False for an invalid object whose fields are unknown: once it is corrected, they are compared again.
    """
    last = None if in_force.is_partial(spec) else last_evaluation(status)
    return last is not None and last.evaluation_spec_hash not in {"", evaluation_hash(spec)}


def with_evaluation_hashes(status: Status, spec: Spec) -> Status:
    """Return status with the hash of the evaluation fields in evaluate attempts of an operator that did not record it.

    The hash of the run covered these fields then, and it still matches.
    """
    hashed = evaluation_hash(spec)
    attempts = (
        entry.model_copy(update={"evaluation_spec_hash": entry.evaluation_spec_hash or hashed})
        if entry.stage is Stage.EVALUATE
        else entry
        for entry in status.run.attempts
    )
    return status.with_run(attempts=tuple(attempts))


def last_evaluation(status: Status) -> AttemptStatus | None:
    """Return the newest evaluate attempt that succeeded."""
    succeeded = (
        entry
        for entry in reversed(status.run.attempts)
        if entry.stage is Stage.EVALUATE and entry.outcome is Outcome.SUCCEEDED
    )
    return next(succeeded, None)


def _reopened(status: Status, now: str) -> Status:
    kept = tuple(entry for entry in status.conditions if entry.type not in TERMINAL_CONDITIONS)
    return status.model_copy(update={"conditions": kept}).with_run(
        restarts=0,
        disruptions=0,
        start_time=now,
        suspended_since=None,
        suspended_seconds=None,
        completion_time=None,
        children_removed=None,
        failed_spec_hash=None,
    )
