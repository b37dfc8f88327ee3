"""Events: each transition once, under a name that a second operator would also use."""

from typing import Any

import pytest

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import AttemptStatus, Condition, FailureStatus, Outcome, Status
from finetune_operator.policy.events import job_events
from statuses import make_status

STAMP = "2026-01-01T00:00:00Z"


def status(phase: Phase, reason: Reason, message: str = "", **fields: Any) -> Status:
    ready = Condition(
        type=ConditionType.READY, status="True", reason=reason, message=message, last_transition_time=STAMP
    )
    return make_status(**{"run": 1, "stage": "train", "attempt": 1, "phase": phase, "conditions": (ready,), **fields})


def attempt(number: int, outcome: Outcome | None) -> AttemptStatus:
    return AttemptStatus(
        stage="train", number=number, job_name=f"a{number}", start_time=STAMP, outcome=outcome, reason="Signal9"
    )


TRAINING = status(Phase.TRAINING, Reason.TRAINING)


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        (Status(), TRAINING, ["Training"]),
        (TRAINING, TRAINING, []),
        (TRAINING, status(Phase.TRAINING, Reason.TRAINING, "other words"), []),
        (TRAINING, status(Phase.TRAINING, Reason.TRAINING, attempt=2), ["Training"]),
        (TRAINING, status(Phase.PENDING, Reason.WAITING_FOR_PODS, "no node"), ["WaitingForPods"]),
        (TRAINING, status(Phase.SUCCEEDED, Reason.SUCCEEDED), ["Succeeded"]),
        (TRAINING, status(Phase.PREPARING, Reason.PREPARING, run=2, stage="prepare"), ["SpecChanged", "Preparing"]),
        (TRAINING, status(Phase.SUSPENDING, Reason.SPEC_CHANGED, run=2), ["SpecChanged"]),
    ],
)
def test_a_transition_is_reported_and_an_unchanged_status_is_not(
    before: Status, after: Status, reasons: list[str]
) -> None:
    assert [reported.reason for reported in job_events(before, after)] == reasons


def test_a_failed_attempt_is_reported_once_with_location_cause_and_advice() -> None:
    failure = FailureStatus(
        failure_class="Signal9",
        stage="train",
        attempt=1,
        pod="p-1",
        node="n",
        message="died\nlast line",
        advice="Look.",
    )
    before = TRAINING.with_run(attempts=(attempt(1, None),))
    after = TRAINING.with_run(attempts=(attempt(1, Outcome.RETRYABLE),), failure=failure)
    (reported,) = job_events(before, after)
    assert (reported.reason, reported.is_warning) == ("AttemptFailed", True)
    assert reported.message == "train attempt 1 failed: Signal9 in p-1 on n: died\nLook."
    assert job_events(after, after) == ()


def test_the_same_transition_has_the_same_identity_for_any_operator() -> None:
    first, second = (job_events(Status(), TRAINING)[0].identity for _ in range(2))
    again = job_events(TRAINING, TRAINING.with_run(attempt=2))[0].identity
    assert first == second != again


def test_the_cost_of_an_attempt_is_reported_at_the_first_step_of_the_next_one() -> None:
    first = attempt(1, Outcome.DISRUPTION).model_copy(
        update={"end_time": "2026-01-01T00:01:00Z", "last_step": 47, "first_step_time": "2026-01-01T00:00:20Z"}
    )
    second = attempt(2, None).model_copy(update={"start_time": "2026-01-01T00:01:01Z"})
    stepped = second.model_copy(update={"first_step_time": "2026-01-01T00:01:12Z", "resumed_from_step": 40})
    before = TRAINING.with_run(attempts=(first, second))
    after = TRAINING.with_run(attempts=(first, stepped))
    (reported,) = job_events(before, after)
    assert (reported.reason, reported.is_warning) == ("Resumed", False)
    assert reported.message == "train attempt 2 resumes at step 40, 12 s after the last attempt; repeated steps: 7"
    assert job_events(after, after) == ()


def test_a_new_warning_is_reported_with_the_same_name_by_any_operator() -> None:
    before = TRAINING.with_run(warnings=("no conditions",))
    after = TRAINING.with_run(warnings=("no conditions", "step 2 is damaged"))
    (reported,) = job_events(before, after)
    assert (reported.reason, reported.message, reported.is_warning) == ("StageWarning", "step 2 is damaged", True)
    assert job_events(before, after) == (reported,)
    assert job_events(after, after) == ()
    both = job_events(TRAINING, after)
    assert [each.message for each in both] == ["no conditions", "step 2 is damaged"]
    assert len({each.identity for each in both}) == 2
