"""What is announced: each turn once, under a name that a second operator would give it too."""

from typing import Any

import pytest

from finetune_api.constants import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import AttemptStatus, Condition, FailureStatus, Outcome, ProgressStatus, Status
from finetune_operator.policy.events import announcements

STAMP = "2026-01-01T00:00:00Z"


def status(phase: Phase, reason: Reason, message: str = "", **fields: Any) -> Status:
    ready = Condition(
        type=ConditionType.READY, status="True", reason=reason, message=message, last_transition_time=STAMP
    )
    return Status(**{"run": 1, "stage": "train", "attempt": 1, "phase": phase, "conditions": (ready,), **fields})


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
def test_a_turn_is_told_and_what_stays_is_not(before: Status, after: Status, reasons: list[str]) -> None:
    assert [told.reason for told in announcements(before, after)] == reasons


def test_a_failed_attempt_is_told_with_place_cause_and_advice_and_only_once() -> None:
    failure = FailureStatus(
        failure_class="Signal9",
        stage="train",
        attempt=1,
        pod="p-1",
        node="n",
        message="died\nlast line",
        advice="Look.",
    )
    before = TRAINING.model_copy(update={"attempts": (attempt(1, None),)})
    after = TRAINING.model_copy(update={"attempts": (attempt(1, Outcome.RETRYABLE),), "failure": failure})
    (told,) = announcements(before, after)
    assert (told.reason, told.is_warning) == ("AttemptFailed", True)
    assert told.message == "train attempt 1 failed: Signal9 in p-1 on n: died\nLook."
    assert announcements(after, after) == ()


@pytest.mark.parametrize(
    ("resumed", "words"),
    [
        (80, "train attempt 2 goes on from step 80; the end of attempt 1 cost 4 steps that are done again (about 2 s)"),
        (None, "train attempt 2 starts again from the base model; the end of attempt 1 cost 84 steps"),
    ],
)
def test_what_a_restart_has_cost_is_told_once_it_is_known(resumed: int | None, words: str) -> None:
    ended = attempt(1, Outcome.DISRUPTION).model_copy(
        update={"first_step_time": STAMP, "last_step": 84, "end_time": "2026-01-01T00:01:00Z"}
    )
    before = TRAINING.model_copy(update={"attempts": (ended, attempt(2, None)), "attempt": 2})
    going = attempt(2, None).model_copy(
        update={"first_step_time": "2026-01-01T00:01:34Z", "resumed_from_step": resumed}
    )
    progress = ProgressStatus(step_seconds=0.5)
    after = before.model_copy(update={"attempts": (ended, going), "progress": progress})
    (told,) = announcements(before, after)
    assert (told.reason, told.is_warning) == ("Resumed", False)
    assert told.message.startswith(words)
    assert told.message.endswith("and 34 s without a step")
    assert announcements(after, after) == ()


def test_the_same_turn_has_the_same_identity_whoever_looks() -> None:
    first, second = (announcements(Status(), TRAINING)[0].identity for _ in range(2))
    again = announcements(TRAINING, TRAINING.model_copy(update={"attempt": 2}))[0].identity
    assert first == second != again
