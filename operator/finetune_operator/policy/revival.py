"""A run that has failed goes on when its spec is changed in what may make the difference, and keeps its meaning."""

from finetune_api.constants import TERMINAL_CONDITIONS, ConditionType
from finetune_api.v1alpha1 import Spec, Status

from .pending import ATTEMPT_FIELDS
from .runs import Fields, hash_of

_CHANCES: Fields = {**ATTEMPT_FIELDS, "restart": True, "budget": True}


def chances(spec: Spec) -> str:
    """Hash of what a run may go on with; of one that has failed it is written in status."""
    return hash_of(spec, _CHANCES)


def given_another_chance(status: Status, spec: Spec, now: str) -> Status:
    """Status as if the run had not failed, where the spec has been changed since: its deadline and its restarts count
    from now on, and the failure of the last attempt ends nothing any more."""
    if not _has_failed(status) or status.failed_with in {None, chances(spec)}:
        return status
    *others, last = status.attempts or (None,)
    attempts = status.attempts if last is None else (*others, last.model_copy(update={"forgiven": True}))
    return status.model_copy(
        update={
            "conditions": tuple(entry for entry in status.conditions if entry.type not in TERMINAL_CONDITIONS),
            "attempts": attempts,
            "restarts": 0,
            "disruptions": 0,
            "start_time": now,
            "suspended_since": None,
            "suspended_seconds": None,
            "completion_time": None,
            "children_removed": None,
            "failed_with": None,
        }
    )


def _has_failed(status: Status) -> bool:
    return any(entry.type is ConditionType.FAILED and entry.status == "True" for entry in status.conditions)
