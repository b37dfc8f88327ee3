"""What conditions say that a reader has to know. Pure."""

from collections.abc import Iterator

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import Condition, FineTuneJob, Status

_TELLING = {
    Phase.PENDING: (ConditionType.READY, "False"),
    Phase.INVALID: (ConditionType.ACCEPTED, "False"),
    Phase.SUSPENDED: (ConditionType.SUSPENDED, "True"),
    Phase.SUSPENDING: (ConditionType.READY, "False"),
    Phase.FAILED: (ConditionType.FAILED, "True"),
}
"""The condition that has turned when the phase began."""

_WRONG = {
    ConditionType.ACCEPTED: "False",
    ConditionType.READY: "False",
    ConditionType.STALLED: "True",
    ConditionType.FAILED: "True",
    ConditionType.SUSPENDED: "True",
    ConditionType.RECONCILING: "True",
    ConditionType.SAFE_TO_STOP: "False",
    ConditionType.CHECKPOINT_STALE: "True",
}


def phase_since(status: Status) -> str | None:
    """When the phase began, as far as status tells."""
    if status.phase in {Phase.SUCCEEDED, Phase.FAILED} and status.run.completion_time:
        return status.run.completion_time
    if status.phase in _TELLING:
        kind, value = _TELLING[status.phase]
        turned = next((entry for entry in status.conditions if entry.type is kind and entry.status == value), None)
        return turned.last_transition_time if turned else None
    if not status.run.attempts:
        return status.run.start_time
    last = status.run.attempts[-1]
    is_between = status.phase is Phase.RESTARTING and last.end_time
    return last.end_time if is_between else last.start_time


def wrong_conditions(job: FineTuneJob) -> Iterator[tuple[str, str]]:
    """Conditions that are not as they should be, and why; those with the same reason together.

    What somebody wants is as it should be: a suspended job is not ready.
    """
    status = job.status
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in status.conditions:
        if _is_wrong(entry) and not _is_wanted(entry, job):
            name = entry.type.value if entry.status == "True" else f"not {entry.type.value}"
            grouped.setdefault((entry.reason, entry.message), []).append(name)
    # A message that says more stands for the same reason without one.
    told = {reason for reason, message in grouped if message}
    cause = f": {status.run.failure.message}" if status.run.failure else ""
    for (reason, message), names in grouped.items():
        if message or reason not in told:
            said = message.removesuffix(cause) if cause else message
            yield ", ".join(names), f"{reason}: {said}" if said else reason
    if status.observed_generation != job.metadata.generation:
        yield (
            "not observed",
            "the operator has not reconciled the object since it was created or changed; check that it is running",
        )


def _is_wrong(entry: Condition) -> bool:
    return _WRONG.get(entry.type) == entry.status or entry.reason is Reason.UNKNOWN_FIELDS


def _is_wanted(entry: Condition, job: FineTuneJob) -> bool:
    if job.spec.suspend and job.status.phase in {Phase.SUSPENDED, Phase.SUSPENDING}:
        return entry.type in {ConditionType.SUSPENDED, ConditionType.READY}
    return False
