"""What follows a failed attempt: the table of `policy/restart`."""

from typing import Any

import pytest

from finetune_api.constants import Reason, Stage
from finetune_api.v1alpha1 import AttemptStatus, CheckpointStatus, Outcome, Restart
from finetune_operator.policy import restart
from observations import STAMP
from statuses import make_status

LIMITS = Restart(max_restarts=2, max_disruptions=3)


def attempt(number: int = 1, outcome: Outcome | None = Outcome.RETRYABLE, **fields: Any) -> AttemptStatus:
    """A training attempt that failed with an internal error, unless `fields` specify otherwise."""
    known: dict[str, Any] = {
        "stage": Stage.TRAIN,
        "number": number,
        "job_name": f"example-r1-train-a{number}",
        "start_time": STAMP,
        "end_time": STAMP,
        "outcome": outcome,
        "reason": "InternalError" if outcome is Outcome.RETRYABLE else str(outcome),
        "exit_code": 70,
        "message": f"error {number}",
    }
    return AttemptStatus(**(known | fields))


def decided(*attempts: AttemptStatus, limits: Restart = LIMITS, longest: float = 300, **status: Any) -> float | Reason:
    """The delay of the next attempt, or the reason why there is none."""
    decision = restart.decide(make_status(attempts=attempts, **status), limits, max_backoff_seconds=longest)
    return decision.reason if isinstance(decision, restart.GiveUp) else decision.delay_seconds


@pytest.mark.parametrize(
    ("outcome", "restarts", "disruptions", "expected"),
    [
        (Outcome.PERMANENT, 0, 0, Reason.PERMANENT_FAILURE),
        (Outcome.RETRYABLE, 1, 0, 0.0),
        (Outcome.RETRYABLE, 2, 0, 10.0),
        (Outcome.RETRYABLE, 3, 0, Reason.RESTARTS_EXHAUSTED),
        (Outcome.DISRUPTION, 99, 3, 0.0),
        (Outcome.DISRUPTION, 0, 4, Reason.DISRUPTIONS_EXHAUSTED),
        (Outcome.REJECTED, 99, 3, 10.0),
        (Outcome.REJECTED, 0, 4, Reason.DISRUPTIONS_EXHAUSTED),
    ],
)
def test_restarts_have_a_budget_and_a_backoff(
    outcome: Outcome, restarts: int, disruptions: int, expected: float | Reason
) -> None:
    assert decided(attempt(outcome=outcome), restarts=restarts, disruptions=disruptions) == expected


def test_the_backoff_doubles_up_to_its_limit() -> None:
    delays = [decided(attempt(), limits=Restart(max_restarts=100), longest=60, restarts=n) for n in range(1, 7)]
    assert delays == [0.0, 10.0, 20.0, 40.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([Outcome.REJECTED], 10.0),
        ([Outcome.REJECTED] * 3, 40.0),
        ([Outcome.DISRUPTION], 0.0),
        ([Outcome.DISRUPTION] * 3, 20.0),
        ([Outcome.RETRYABLE, Outcome.DISRUPTION], 0.0),
    ],
)
def test_attempts_that_are_disrupted_before_their_first_step_have_increasing_delays(
    outcomes: list[Outcome], expected: float
) -> None:
    attempts = [attempt(number, outcome) for number, outcome in enumerate(outcomes, 1)]
    assert decided(*attempts, disruptions=len(attempts)) == expected


def test_a_disruption_during_training_is_followed_by_an_immediate_restart() -> None:
    trained = attempt(2, Outcome.DISRUPTION, first_step_time=STAMP)
    assert decided(attempt(1, Outcome.DISRUPTION), trained, disruptions=2) == 0.0


@pytest.mark.parametrize(
    ("outcome", "restarts", "first_step_times", "expected"),
    [
        (Outcome.DISRUPTION, 0, [STAMP], 10.0),
        (Outcome.DISRUPTION, 0, [STAMP, STAMP], 10.0),
        (Outcome.DISRUPTION, 0, [None], 10.0),
        (Outcome.DISRUPTION, 0, [None, None], 20.0),
        (Outcome.RETRYABLE, 1, [STAMP], 10.0),
        (Outcome.RETRYABLE, 1, [None], 10.0),
    ],
)
def test_an_eviction_is_never_followed_by_an_immediate_restart(
    outcome: Outcome, restarts: int, first_step_times: list[str | None], expected: float
) -> None:
    """The node is still short of the resource for which it evicted the pod."""
    evicted = [
        attempt(number, outcome, reason="Evicted", first_step_time=began)
        for number, began in enumerate(first_step_times, 1)
    ]
    assert decided(*evicted, restarts=restarts, disruptions=len(evicted)) == expected


def test_a_failure_after_an_eviction_for_own_usage_has_a_longer_delay() -> None:
    limits = Restart(max_restarts=9)
    assert decided(attempt(1, reason="Evicted"), attempt(2), limits=limits, restarts=2) == 10.0
    assert decided(attempt(1), attempt(2, reason="Evicted"), limits=limits, restarts=2) == 20.0


OOM = {"reason": "OutOfMemory", "exit_code": 80}
NAN = {"reason": "Diverged", "exit_code": 81}
SAME = {"message": "KeyError: 'modules_to_save'", "last_step": 40}


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (OOM, OOM, True),
        (OOM, {"reason": "OutOfMemory", "exit_code": 137}, True),
        (NAN | {"last_step": 7}, NAN | {"last_step": 9}, True),
        (NAN, OOM, False),
        (SAME, SAME, True),
        (SAME, SAME | {"last_step": 41}, False),
        (SAME, SAME | {"message": "KeyError: 'other'"}, False),
        ({"message": "example-r1-train-a1-0-x7k2p ended with status 1", "exit_code": 1, "reason": "Exit1"},
         {"message": "example-r1-train-a2-0-9qqzz ended with status 1", "exit_code": 1, "reason": "Exit1"}, True),
        ({"message": "<A at 0x7f01>"}, {"message": "<A at 0x7fe2>"}, True),
        ({"reason": "Signal9", "exit_code": 137, "message": "m"},) * 2 + (False,),
        ({"reason": "StorageUnreachable", "exit_code": 69, "message": "m"},) * 2 + (False,),
        ({"reason": "Evicted", "exit_code": 137, "message": "used 3Gi"},
         {"reason": "Evicted", "exit_code": 137, "message": "used 4Gi"}, True),
    ],
)  # fmt: skip
def test_a_failure_that_repeats_unchanged_ends_the_run(
    first: dict[str, Any], second: dict[str, Any], is_same: bool
) -> None:
    limits = Restart(max_restarts=9)
    assert isinstance(decided(attempt(1, **first), limits=limits, restarts=1), float)
    expected = Reason.REPEATED_FAILURE if is_same else 10.0
    assert decided(attempt(1, **first), attempt(2, **second), limits=limits, restarts=2) == expected


@pytest.mark.parametrize(
    ("stage", "advice"), [(Stage.TRAIN, "microBatchSize"), (Stage.PREPARE, "fewer or smaller files")]
)
def test_the_advice_for_repeated_out_of_memory_errors_depends_on_the_stage(stage: Stage, advice: str) -> None:
    attempts = tuple(attempt(number, stage=stage, **OOM) for number in (1, 2))
    decision = restart.decide(
        make_status(attempts=attempts, restarts=2), Restart(max_restarts=9), max_backoff_seconds=9
    )
    assert isinstance(decision, restart.GiveUp)
    assert advice in decision.message
    assert ("microBatchSize" in decision.message) is (stage is Stage.TRAIN)


@pytest.mark.parametrize(
    ("between", "is_repeated"),
    [
        ([], True),
        ([attempt(2, Outcome.DISRUPTION)], True),
        ([attempt(2, Outcome.STOPPED)], True),
        ([attempt(2)], False),
    ],
    ids=["nothing", "a disruption", "a suspension", "another failure"],
)
def test_disruptions_and_stops_do_not_end_a_series(between: list[AttemptStatus], is_repeated: bool) -> None:
    found = decided(attempt(1, **NAN), *between, attempt(3, **NAN), limits=Restart(max_restarts=9), restarts=1)
    assert (found is Reason.REPEATED_FAILURE) is is_repeated


def test_a_new_checkpoint_and_a_changed_spec_start_a_new_series() -> None:
    saved = CheckpointStatus(uri="s3://b/c", step=20, time=STAMP)
    again = attempt(2, **NAN, known_checkpoint_step=10)
    assert decided(attempt(1, **NAN), again, restarts=1) == 0.0
    assert decided(attempt(1, **NAN, known_checkpoint_step=10), again, restarts=1, last_checkpoint=saved) == 0.0
    assert decided(attempt(1, **NAN, superseded_by_spec_change=True), attempt(2, **NAN), restarts=1) == 0.0


def test_the_end_of_a_series_has_advice() -> None:
    status = make_status(attempts=(attempt(1, **NAN), attempt(2, **NAN)), restarts=2)
    decision = restart.decide(status, LIMITS, max_backoff_seconds=300)
    assert isinstance(decision, restart.GiveUp)
    assert decision.message.startswith("failed 2 times with Diverged and no new checkpoint in between; another attempt")
    assert "lower spec.training.learningRate" in decision.message


@pytest.mark.parametrize(("reason", "exit_code"), [("OutOfMemory", 80), ("Evicted", 137)])
@pytest.mark.parametrize(
    ("stage", "field"), [(Stage.TRAIN, "spec.workers.resources"), (Stage.EVALUATE, "spec.stages.evaluate.resources")]
)
def test_advice_about_resources_names_those_of_the_stage(reason: str, exit_code: int, stage: Stage, field: str) -> None:
    failed = (attempt(number, reason=reason, exit_code=exit_code, stage=stage) for number in (1, 2))
    decision = restart.decide(make_status(attempts=tuple(failed), restarts=2), LIMITS, max_backoff_seconds=300)
    assert isinstance(decision, restart.GiveUp)
    assert field in decision.message
