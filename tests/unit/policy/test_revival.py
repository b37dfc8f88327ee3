"""What lets a run that has failed go on."""

from datetime import datetime
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.v1alpha1 import AttemptStatus, Condition, Outcome, Spec, Status
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import stages
from finetune_operator.policy.revival import chances, given_another_chance
from finetune_operator.policy.runs import Run

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
    told = Condition(type=kind, status="True", reason=Reason.RESTARTS_EXHAUSTED, message="", last_transition_time=THEN)
    base = {"run": 1, "restarts": 4, "disruptions": 2, "start_time": THEN, "completion_time": THEN}
    return Status(**{**base, "phase": Phase.FAILED, "attempts": attempts, "conditions": (told,), **fields})


def failed(outcome: Outcome | None = Outcome.RETRYABLE) -> Status:
    return ended(ConditionType.FAILED, outcome, failed_with=chances(spec_of()))


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"suspend": True}, False),
    ({"ttlSecondsAfterFinished": 60}, False),
    ({"restart": {"maxRestarts": 4}}, True),
    ({"budget": {"deadline": "2h"}}, True),
    ({"workers": {"resources": {"limits": {"memory": "64Gi"}}}}, True),
    ({"storage": {"credentialsSecret": "another"}}, True),
    ({"deepspeed": {"zeroStage": 3}}, True),
    ({"training": {"microBatchSize": 1}}, True),
]


@pytest.mark.parametrize(("change", "goes_on"), CHANGES)
@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.PERMANENT, Outcome.STOPPED, None])
def test_a_failed_run_goes_on_with_the_stage_that_failed(
    change: dict[str, Any], goes_on: bool, outcome: Outcome | None
) -> None:
    before, spec = failed(outcome), spec_of(**change)
    after = given_another_chance(before, spec, NOW)
    assert (after != before) is goes_on
    if not goes_on:
        return
    assert (after.restarts, after.disruptions, after.start_time, after.completion_time) == (0, 0, NOW, None)
    decision = stages.decide(
        spec, Run(1, "", is_new=False), after, Observed(()), now=datetime.fromisoformat(NOW), max_backoff_seconds=300
    )
    assert decision == (stages.Start(Stage.PREPARE, 1) if outcome is None else stages.Start(Stage.TRAIN, 3))
    assert given_another_chance(after, spec, NOW) == after


def test_what_has_succeeded_or_was_ended_by_an_older_operator_stays_as_it_is() -> None:
    changed = spec_of(restart={"maxRestarts": 9})
    for status in (
        ended(ConditionType.COMPLETE, Outcome.SUCCEEDED, failed_with=chances(spec_of())),
        ended(ConditionType.FAILED, Outcome.RETRYABLE),
    ):
        assert given_another_chance(status, changed, NOW) == status
