"""The result of a promotion: message of the evaluate pod -> status, condition, Event, history."""

from typing import Any

import pytest

from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.progress import EvaluateResult, PromotionResult, TerminationMessage
from finetune_api.v1alpha1 import ArtifactStatus, CandidateName, Metric, PromotionOutcome, Status
from finetune_operator.observed import Observed
from finetune_operator.policy import steps
from finetune_operator.policy.events import job_events
from finetune_operator.policy.history import apply_observation
from finetune_operator.policy.runs import Run
from finetune_operator.policy.status import status_after
from finetune_operator.render.event import render_event
from observations import STAMP, make_pod, make_stage
from statuses import make_status

OLD, NEW = "s3://bucket/out/runs/r0001-1/model", "s3://bucket/out/runs/r0002-1/model"
RUN = Run(1, "", is_new=False)
BEFORE = make_status(run=1, stage="evaluate", attempt=1, artifact=ArtifactStatus(uri=NEW, digest="d"))
OUTCOMES = {
    "Promoted": ("True", Reason.PROMOTED, False),
    "Refused": ("False", Reason.PROMOTION_REFUSED, True),
    "Conflict": ("False", Reason.PROMOTION_CONFLICT, True),
}
"""Outcome -> status and reason of the condition, and whether the Event is a warning."""
TEXT = "does not hold: Accuracy 0.7 must be at least 0.9"


def result(outcome: str = "Refused", **fields: Any) -> PromotionResult:
    known = {"outcome": outcome, "message": TEXT, "uri": OLD, "time": "2026-03-01T12:00:00Z"}
    return PromotionResult.model_validate(known | fields)


def evaluated(before: Status, promotion: PromotionResult | None, *, attempt: int = 1, **figures: Any) -> Status:
    """The status after an evaluate attempt that has succeeded with this result."""
    found = EvaluateResult(report_uri="s3://r", model_uri=NEW, digest="d", promotion=promotion, **figures)
    message = TerminationMessage(stage="evaluate", exit_code=0, evaluated=found)
    read = TerminationMessage.decode(message.encode())
    child = make_stage(Stage.EVALUATE, attempt, ended="Complete", pods=(make_pod(0, 0, message=read),))
    status = apply_observation(before.with_run(attempt=attempt), RUN, Observed((child,)), None, STAMP)
    finished = steps.Finish(True, Reason.SUCCEEDED, "the model is in object storage")
    return status_after(status, finished, generation=1, now=STAMP)


def condition(status: Status, kind: ConditionType) -> tuple[str, Reason, str] | None:
    found = (entry for entry in status.conditions if entry.type is kind)
    return next(((entry.status, entry.reason, entry.message) for entry in found), None)


def test_figures_of_regression_sets_are_recorded_with_their_candidate() -> None:
    general = {"general": {Metric.LOSS: 3.6}}
    after = evaluated(BEFORE, None, baseline_sets=general, tuned_sets={"general": {Metric.LOSS: 3.8}})
    assert after.regression_sets_of(CandidateName.BASE_MODEL) == general
    assert after.regression_sets_of(CandidateName.TUNED) == {"general": {Metric.LOSS: 3.8}}
    assert after.metrics_of(CandidateName.TUNED) == {}
    without = evaluated(BEFORE, None, tuned={Metric.LOSS: 1.0})
    assert without.regression_sets_of(CandidateName.TUNED) == {}
    assert "regressionSets" not in without.written()["run"]["candidates"]["tuned"]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_outcome_is_recorded_and_reported_and_never_fails_the_run(outcome: str) -> None:
    value, reason, is_warning = OUTCOMES[outcome]
    after = evaluated(
        BEFORE, result(outcome, previous=OLD), promoted={Metric.ACCURACY: 0.8}, tuned={Metric.ACCURACY: 0.7}
    )
    promotion = after.run.promotion
    assert promotion is not None
    assert (promotion.outcome, promotion.message, promotion.uri, promotion.previous, promotion.time) == (
        PromotionOutcome(outcome),
        TEXT,
        OLD,
        OLD,
        "2026-03-01T12:00:00Z",
    )
    assert after.metrics_of(CandidateName.PROMOTED) == {Metric.ACCURACY: 0.8}
    assert condition(after, ConditionType.PROMOTED) == (value, reason, TEXT)
    complete = condition(after, ConditionType.COMPLETE)
    assert complete is not None
    assert (after.phase, complete[0]) == (Phase.SUCCEEDED, "True")
    [event] = [event for event in job_events(BEFORE, after) if event.reason == reason]
    assert event.is_warning is is_warning
    assert event.message == f"{TEXT}; promoted now: {OLD}; promoted before: {OLD}"
    assert [event for event in job_events(after, after) if event.reason == reason] == []


def test_without_a_promotion_there_is_no_condition_and_no_event() -> None:
    after = evaluated(BEFORE, None, tuned={Metric.ACCURACY: 0.7})
    assert after.run.promotion is None
    assert condition(after, ConditionType.PROMOTED) is None
    assert not [event for event in job_events(BEFORE, after) if event.reason.startswith("Promot")]
    assert "promotion" not in after.written()["run"]


def test_a_later_evaluation_replaces_the_outcome_and_has_its_own_event() -> None:
    first = evaluated(BEFORE, result())
    again = evaluated(first, result(message="other figures", time="2026-03-01T13:00:00Z"), attempt=2)
    [event] = [event for event in job_events(first, again) if event.reason == Reason.PROMOTION_REFUSED]
    assert event.message.startswith("other figures")
    [earlier] = [event for event in job_events(BEFORE, first) if event.reason == Reason.PROMOTION_REFUSED]
    assert event.identity != earlier.identity
    promoted = evaluated(again, result("Promoted", uri=NEW), attempt=3)
    assert condition(promoted, ConditionType.PROMOTED) == ("True", Reason.PROMOTED, TEXT)
    removed = evaluated(promoted, None, attempt=4)
    assert (removed.run.promotion, condition(removed, ConditionType.PROMOTED)) == (None, None)


def test_the_outcome_is_kept_while_the_run_is_evaluated_again() -> None:
    first = evaluated(BEFORE, result("Promoted"))
    watching = status_after(first, steps.Watch(Stage.EVALUATE, 2), generation=2, now=STAMP)
    assert condition(watching, ConditionType.PROMOTED) == ("True", Reason.PROMOTED, TEXT)


def test_a_new_run_has_no_outcome_and_the_history_keeps_that_of_the_old_one() -> None:
    first = evaluated(BEFORE, result("Promoted", message="m" * 1024, uri=NEW))
    new = apply_observation(first, Run(2, "h", is_new=True), Observed(()), None, STAMP)
    new = status_after(new, steps.Watch(Stage.PREPARE, 1), generation=2, now=STAMP)
    assert (new.run.promotion, condition(new, ConditionType.PROMOTED)) == (None, None)
    [past] = new.history
    assert past.promotion is not None
    assert (past.promotion.outcome, past.promotion.uri) == (PromotionOutcome.PROMOTED, NEW)
    assert past.promotion.message == "m" * 256
    assert not [event for event in job_events(first, new) if event.reason.startswith("Promot")]


def test_a_long_message_fits_into_status_and_event() -> None:
    after = evaluated(BEFORE, result(message="ü" * 1500))
    assert after.run.promotion is not None
    assert len(after.run.promotion.message) <= 1024
    assert Status.read(after.written()).run.promotion == after.run.promotion
    [event] = [event for event in job_events(BEFORE, after) if event.reason == Reason.PROMOTION_REFUSED]
    owner = {"metadata": {"name": "job", "namespace": "default", "uid": "u"}}
    assert len(render_event(owner, event, STAMP)["message"]) == 1024
