"""Changes after which a failed run continues."""

from datetime import datetime
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.stages import run_stages
from finetune_api.v1alpha1 import AttemptStatus, Condition, Outcome, Spec, Status
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import steps
from finetune_operator.policy.after_change import continued_after_change, retry_hash, with_evaluation_hashes
from finetune_operator.policy.pending import evaluation_hash
from finetune_operator.policy.runs import Run
from statuses import make_status

THEN, NOW = "2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z"


def spec_of(**spec: Any) -> Spec:
    return parse_job(make_job(**spec)).spec


def ended(kind: ConditionType, outcome: Outcome | None, **fields: Any) -> Status:
    attempts = (
        ()
        if outcome is None
        else (
            AttemptStatus(stage=Stage.PREPARE, number=1, job_name="p", start_time=THEN, outcome=Outcome.SUCCEEDED),
            AttemptStatus(stage=Stage.TRAIN, number=2, job_name="t", start_time=THEN, end_time=THEN, outcome=outcome),
        )
    )
    reported = Condition(
        type=kind, status="True", reason=Reason.RESTARTS_EXHAUSTED, message="", last_transition_time=THEN
    )
    base = {"run": 1, "restarts": 4, "disruptions": 2, "start_time": THEN, "completion_time": THEN}
    return make_status(**{**base, "phase": Phase.FAILED, "attempts": attempts, "conditions": (reported,), **fields})


def failed(outcome: Outcome | None = Outcome.RETRYABLE) -> Status:
    return ended(ConditionType.FAILED, outcome, failed_spec_hash=retry_hash(spec_of()))


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"suspend": True}, False),
    ({"ttlSecondsAfterFinished": 60}, False),
    ({"schedule": {"cron": "0 3 * * *"}, "data": {"poll": "1h"}}, False),
    ({"updatePolicy": "Ignore", "reuse": "Never", "historyLimit": 1, "output": {"keepRuns": 1}}, False),
    ({"restart": {"maxRestarts": 4}}, True),
    ({"budget": {"deadline": "2h"}}, True),
    ({"workers": {"resources": {"limits": {"memory": "64Gi"}}}}, True),
    ({"storage": {"credentialsSecret": "another"}}, True),
    ({"deepspeed": {"zeroStage": 3}}, True),
    ({"training": {"microBatchSize": 1}}, True),
]


@pytest.mark.parametrize(("change", "goes_on"), CHANGES)
@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.PERMANENT, Outcome.STOPPED, None])
def test_a_failed_run_continues_with_the_stage_that_failed(
    change: dict[str, Any], goes_on: bool, outcome: Outcome | None
) -> None:
    before, spec = failed(outcome), spec_of(**change)
    after = continued_after_change(before, spec, NOW)
    assert (after != before) is goes_on
    if not goes_on:
        return
    assert (after.run.restarts, after.run.disruptions, after.run.start_time, after.run.completion_time) == (
        0,
        0,
        NOW,
        None,
    )
    decision = steps.decide(
        spec, Run(1, "", is_new=False), after, Observed(()), now=datetime.fromisoformat(NOW), max_backoff_seconds=300
    )
    assert decision == (steps.Start(Stage.PREPARE, 1) if outcome is None else steps.Start(Stage.TRAIN, 3))
    assert continued_after_change(after, spec, NOW) == after


def test_a_run_that_succeeded_or_ended_under_an_older_operator_is_unchanged() -> None:
    changed = spec_of(restart={"maxRestarts": 9})
    for status in (
        ended(ConditionType.COMPLETE, Outcome.SUCCEEDED, failed_spec_hash=retry_hash(spec_of())),
        ended(ConditionType.FAILED, Outcome.RETRYABLE),
    ):
        assert continued_after_change(status, changed, NOW) == status


def succeeded(evaluated: str) -> Status:
    """A complete run whose evaluation was started with fields of this hash."""
    attempts = tuple(
        AttemptStatus(stage=stage, number=number, job_name=stage, start_time=THEN, outcome=Outcome.SUCCEEDED)
        for number, stage in enumerate(run_stages(), start=1)
    )
    attempts = (*attempts[:-1], attempts[-1].model_copy(update={"evaluation_spec_hash": evaluated}))
    return make_status(
        run=1,
        phase=Phase.SUCCEEDED,
        attempts=attempts,
        stage="evaluate",
        attempt=3,
        completion_time=THEN,
        conditions=(
            Condition(type=ConditionType.COMPLETE, status="True", reason=Reason.SUCCEEDED, last_transition_time=THEN),
        ),
    )


EVALUATED_AGAIN: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"evaluation": {"maxNewTokens": 64}}, False),
    ({"evaluation": {"maxNewTokens": 128}}, True),
    ({"evaluation": {"baseModel": False}}, True),
    ({"evaluation": {"promote": {}}}, True),
    ({"evaluation": {"promote": {"thresholds": [{"metric": "Accuracy", "min": 0.9}]}}}, True),
    ({"output": {"uri": "s3://bucket/out", "formats": ["Merged"]}}, False),
    ({"output": {"uri": "s3://bucket/out", "formats": ["Merged", "Int8"]}}, True),
    ({"workers": {"nodes": 2}}, False),
    ({"checkpoint": {"keepLast": 5}}, False),
    ({"restart": {"maxRestarts": 9}}, False),
    ({"suspend": True}, False),
]


@pytest.mark.parametrize(("change", "again"), EVALUATED_AGAIN, ids=[str(change) for change, _ in EVALUATED_AGAIN])
def test_a_complete_run_is_evaluated_again_within_the_run(change: dict[str, Any], again: bool) -> None:
    before, spec = succeeded(evaluation_hash(spec_of())), spec_of(**change)
    after = continued_after_change(before, spec, NOW)
    assert (after != before) is again
    decision = steps.decide(
        spec, Run(1, "", is_new=False), after, Observed(()), now=datetime.fromisoformat(NOW), max_backoff_seconds=300
    )
    assert decision == (steps.Start(Stage.EVALUATE, 4) if again else steps.StayEnded())


def test_an_evaluation_of_unknown_fields_is_not_repeated() -> None:
    """It was started by an operator that did not record them."""
    before = succeeded("")
    assert continued_after_change(before, spec_of(evaluation={"maxNewTokens": 128}), NOW) == before


def test_fields_that_change_during_the_evaluation_are_used_in_a_second_evaluation() -> None:
    complete = succeeded(evaluation_hash(spec_of()))
    running = complete.model_copy(update={"conditions": ()})
    for spec, expected in [
        (spec_of(), steps.Finish(True, Reason.SUCCEEDED, "the model is in object storage")),
        (spec_of(evaluation={"maxNewTokens": 128}), steps.Start(Stage.EVALUATE, 4)),
    ]:
        decision = steps.decide(
            spec,
            Run(1, "", is_new=False),
            running,
            Observed(()),
            now=datetime.fromisoformat(NOW),
            max_backoff_seconds=9,
        )
        assert decision == expected


def test_a_failed_evaluation_with_fields_that_were_changed_back_leaves_the_run_complete() -> None:
    complete = succeeded(evaluation_hash(spec_of()))
    failed = AttemptStatus(stage=Stage.EVALUATE, number=4, job_name="again", start_time=THEN, outcome=Outcome.PERMANENT)
    status = complete.model_copy(update={"conditions": ()}).with_run(attempts=(*complete.run.attempts, failed))
    for spec, is_complete in [(spec_of(), True), (spec_of(evaluation={"maxNewTokens": 128}), False)]:
        decision = steps.decide(
            spec, Run(1, "", is_new=False), status, Observed(()), now=datetime.fromisoformat(NOW), max_backoff_seconds=9
        )
        assert isinstance(decision, steps.Finish)
        assert decision.succeeded is is_complete


def test_evaluations_of_an_operator_that_did_not_record_their_fields_get_the_hash_of_the_spec() -> None:
    adopted = with_evaluation_hashes(succeeded(""), spec_of())
    assert adopted == succeeded(evaluation_hash(spec_of()))
    assert with_evaluation_hashes(succeeded("known"), spec_of()) == succeeded("known")
