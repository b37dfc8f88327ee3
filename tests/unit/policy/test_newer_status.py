"""A status with values that this operator does not support: it reports this, and keeps what it cannot read."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.rules import Violation
from finetune_api.v1alpha1 import Status
from finetune_operator.policy import status as status_policy

THEN, NOW = "2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z"


def entry(kind: str, status: str, reason: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": THEN}


@pytest.mark.parametrize(
    "unknown",
    [
        {"conditions": [entry("Ready", "True", "Entangled")]},
        {"conditions": [entry("Accepted", "True", "Entangled")]},
        {"conditions": [entry("Teleported", "True", "Valid")]},
        {"phase": "Teleporting"},
        {"run": {"number": 3, "attempts": [{"stage": "beam", "number": 1, "jobName": "a", "startTime": THEN}]}},
    ],
    ids=["ready", "accepted", "condition", "phase", "attempt"],
)
def test_unreadable_status_is_kept_so_that_no_later_reconcile_uses_the_rest(unknown: dict[str, Any]) -> None:
    written = {"run": {"number": 3}, "qubits": 9, **unknown}
    rejection = status_policy.rejected(Status(), (Violation("status", "newer"),), generation=1, now=NOW)
    reported = status_policy.merged_into_unreadable(written, rejection)
    with pytest.raises(ValidationError):
        Status.model_validate(reported)
    assert {key: reported[key] for key in written if key != "conditions"} == {
        key: value for key, value in written.items() if key != "conditions"
    }
    assert [one for one in unknown.get("conditions", ()) if one not in reported["conditions"]] == []
    assert any(one["reason"] == "InvalidSpec" and one["type"] == "Stalled" for one in reported["conditions"])
    assert status_policy.merged_into_unreadable(reported, rejection) == reported, "a second reconcile writes nothing"


def test_the_time_of_a_condition_changes_only_with_its_status() -> None:
    written = {"conditions": [entry("Accepted", "False", "InvalidSpec"), entry("Ready", "True", "Valid")]}
    rejection = status_policy.rejected(Status(), (Violation("status", "newer"),), generation=1, now=NOW)
    reported = status_policy.merged_into_unreadable(written, rejection)["conditions"]
    assert {one["type"]: one["lastTransitionTime"] for one in reported} == {
        "Accepted": THEN,
        "Ready": NOW,
        "Reconciling": NOW,
        "Stalled": NOW,
    }
