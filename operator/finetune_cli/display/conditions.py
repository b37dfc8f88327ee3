"""Select what to show of conditions. Pure."""

from collections.abc import Iterator

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import Condition, FineTuneJob, Status

_PHASE_CONDITIONS = {
    Phase.PENDING: (ConditionType.READY, "False"),
    Phase.INVALID: (ConditionType.ACCEPTED, "False"),
    Phase.SUSPENDED: (ConditionType.SUSPENDED, "True"),
    Phase.SUSPENDING: (ConditionType.READY, "False"),
    Phase.FAILED: (ConditionType.FAILED, "True"),
}
"""For each phase, the condition and status whose transition time is the start of the phase."""

_PROBLEM_STATUS = {
    ConditionType.ACCEPTED: "False",
    ConditionType.READY: "False",
    ConditionType.STALLED: "True",
    ConditionType.FAILED: "True",
    ConditionType.SUSPENDED: "True",
    ConditionType.SAFE_TO_STOP: "False",
    ConditionType.CHECKPOINT_STALE: "True",
}


def phase_since(status: Status) -> str | None:
    """Return the start time of the current phase, or None if status does not contain it."""
    if status.phase in {Phase.SUCCEEDED, Phase.FAILED} and status.run.completion_time:
        return status.run.completion_time
    if status.phase in _PHASE_CONDITIONS:
        kind, value = _PHASE_CONDITIONS[status.phase]
        condition = next((entry for entry in status.conditions if entry.type is kind and entry.status == value), None)
        return condition.last_transition_time if condition else None
    if not status.run.attempts:
        return status.run.start_time
    last = status.run.attempts[-1]
    is_between = status.phase is Phase.RESTARTING and last.end_time
    return last.end_time if is_between else last.start_time


def wrong_conditions(job: FineTuneJob) -> Iterator[tuple[str, str]]:
    """Yield the types and the reason of conditions that indicate a problem, grouped by reason and message.

    Conditions that the user has requested are left out, for example "not Ready" of a suspended job.
    """
    status = job.status
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in status.conditions:
        if _is_wrong(entry) and not _is_wanted(entry, job):
            name = entry.type.value if entry.status == "True" else f"not {entry.type.value}"
            grouped.setdefault((entry.reason, entry.message), []).append(name)
    # If a reason occurs with and without a message, only the entry with the message is shown.
    with_message = {reason for reason, message in grouped if message}
    cause = f": {status.run.failure.message}" if status.run.failure else ""
    for (reason, message), names in grouped.items():
        if message or reason not in with_message:
            text = message.removesuffix(cause) if cause else message
            yield ", ".join(names), f"{reason}: {text}" if text else reason
    if status.observed_generation != job.metadata.generation:
        yield (
            "not observed",
            "the operator has not reconciled the object since it was created or changed; check that it is running",
        )


def _is_wrong(entry: Condition) -> bool:
    return _PROBLEM_STATUS.get(entry.type) == entry.status or entry.reason in {
        Reason.UNKNOWN_FIELDS,
        Reason.NEXT_ATTEMPT,
    }


def _is_wanted(entry: Condition, job: FineTuneJob) -> bool:
    if job.spec.suspend and job.status.phase in {Phase.SUSPENDED, Phase.SUSPENDING}:
        return entry.type in {ConditionType.SUSPENDED, ConditionType.READY}
    return False
