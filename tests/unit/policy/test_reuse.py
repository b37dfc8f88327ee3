"""Runs that become the current one again because the spec is changed back, and what a run keeps in the history."""

from datetime import datetime
from typing import Any

import pytest

from factories import make_job, merged
from finetune_api.constants import ConditionType, Reason, Stage
from finetune_api.v1alpha1 import (
    ArtifactStatus,
    AttemptPlan,
    AttemptStatus,
    Condition,
    CostStatus,
    FineTuneJob,
    Outcome,
    PastRun,
    ResolvedStatus,
    Status,
)
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import history, runs, steps
from finetune_operator.policy.events import job_events
from finetune_operator.policy.pending import evaluation_hash
from finetune_operator.policy.transitions import ended

THEN, NOW = "2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z"
DONE = Condition(
    type=ConditionType.COMPLETE, status="True", reason=Reason.SUCCEEDED, message="", last_transition_time=THEN
)
ARTIFACT = ArtifactStatus(uri="s3://b/r0001/model", digest="d")


def job_of(status: Status | None = None, **spec: Any) -> FineTuneJob:
    return parse_job({**make_job(**spec), "status": (status or Status()).written()})


def attempt_of(stage: Stage, number: int = 1, outcome: Outcome | None = Outcome.SUCCEEDED, **fields: Any) -> Any:
    end = None if outcome is None else THEN
    name = f"job-r1-{stage}-a{number}"
    return AttemptStatus(
        stage=stage, number=number, job_name=name, start_time=THEN, end_time=end, outcome=outcome, **fields
    )


def complete(job: FineTuneJob) -> tuple[AttemptStatus, ...]:
    evaluated = attempt_of(Stage.EVALUATE, evaluation_spec_hash=evaluation_hash(job.spec))
    return (attempt_of(Stage.PREPARE), attempt_of(Stage.TRAIN), evaluated)


def status_of(job: FineTuneJob, *attempts: AttemptStatus, ended: bool = True, **fields: Any) -> Status:
    """The status of the first run of a job."""
    run = runs.current_run(job, ())
    status = history.apply_observation(Status(), run, Observed(()), None, THEN, spec=job.spec)
    status = status.with_run(attempts=attempts, artifact=ARTIFACT if ended else None, **fields)
    return status.model_copy(update={"conditions": (DONE,) if ended else ()})


def observe(job: FineTuneJob, now: str = NOW) -> Status:
    run = runs.current_run(job, ())
    return history.apply_observation(job.status, run, Observed(()), None, now, spec=job.spec)


def next_step(job: FineTuneJob, status: Status) -> steps.Step:
    job = job.model_copy(update={"status": status})
    run = runs.current_run(job, ())
    return steps.decide(job.spec, run, status, Observed(()), now=datetime.fromisoformat(NOW), max_backoff_seconds=300)


CHANGED = {"training": {"learningRate": 0.5}}


def changed_and_back(first: Status, **back: Any) -> tuple[FineTuneJob, Status]:
    """A job whose spec is changed, and changed back to `back`; and its status before that."""
    second = observe(job_of(first, **CHANGED))
    assert (second.run.number, [past.number for past in second.history]) == (2, [1])
    return job_of(second, **back), second


def test_a_complete_run_is_the_current_one_again_and_nothing_is_started() -> None:
    first = job_of()
    job, before = changed_and_back(status_of(first, *complete(first)))
    after = observe(job)
    assert (after.run.number, after.run.artifact, after.newest_run) == (1, ARTIFACT, 2)
    assert [past.number for past in after.history] == [2]
    assert next_step(job, after) == steps.Finish(True, Reason.SUCCEEDED, "the model is in object storage")
    (event,) = job_events(before, after)
    assert event.message.splitlines() == [
        "the spec was changed back: run 1 is the current run again, instead of run 2",
        "spec.training.learningRate: 0.5 -> 0.0002",
    ]
    assert list(ended(before, after)) == [], "its attempts were reported when they ended"


def test_another_evaluation_of_a_reused_run_only_evaluates() -> None:
    first = job_of()
    job, _ = changed_and_back(status_of(first, *complete(first)), evaluation={"baseModel": False})
    assert next_step(job, observe(job)) == steps.Start(Stage.EVALUATE, 2)


def test_a_reused_model_is_compared_with_the_one_that_is_promoted_now() -> None:
    gate = {"evaluation": {"promote": {}}}
    first = job_of(**gate)
    job, _ = changed_and_back(status_of(first, *complete(first)), **gate)
    assert next_step(job, observe(job)) == steps.Start(Stage.EVALUATE, 2)


UNFINISHED = [
    ((attempt_of(Stage.PREPARE), attempt_of(Stage.TRAIN, 3, None)), steps.Start(Stage.TRAIN, 4)),
    ((attempt_of(Stage.PREPARE), attempt_of(Stage.TRAIN, 2, Outcome.RETRYABLE)), steps.Start(Stage.TRAIN, 3)),
    ((attempt_of(Stage.PREPARE, 1, None),), steps.Start(Stage.PREPARE, 2)),
]


@pytest.mark.parametrize(("attempts", "step"), UNFINISHED, ids=["training", "in back-off", "preparing"])
def test_an_unfinished_run_continues_with_its_next_attempt(attempts: Any, step: steps.Step) -> None:
    job, _ = changed_and_back(status_of(job_of(), *attempts, ended=False))
    after = observe(job)
    assert (after.run.number, after.run.start_time, after.run.restarts) == (1, NOW, 0)
    assert next_step(job, after) == step


NOT_REUSED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"reuse": "Never"}),
    ({"files_deleted": True}, {}),
    ({"result": "Failed"}, {}),
    ({"attempts": ()}, {}),
]


@pytest.mark.parametrize(("past", "spec"), NOT_REUSED, ids=["never", "deleted", "failed", "no attempts"])
def test_a_run_that_cannot_be_reused_is_replaced_by_a_new_one(past: dict[str, Any], spec: dict[str, Any]) -> None:
    first = job_of()
    _, second = changed_and_back(status_of(first, *complete(first)))
    changed = second.model_copy(update={"history": (second.history[0].model_copy(update=past),)})
    run = runs.current_run(job_of(changed, **spec), ())
    assert (run.number, run.reused) == (3, None)


def test_an_automatic_value_that_is_spelled_out_is_the_same_run() -> None:
    resolved = ResolvedStatus(task="SequenceClassification", dtype="Float32")
    first = job_of()
    job, _ = changed_and_back(status_of(first, *complete(first), resolved=resolved), model={"dtype": "Float32"})
    assert observe(job).run.number == 1


def test_numbers_are_not_used_again_after_the_history_was_shortened() -> None:
    first = job_of()
    job, _ = changed_and_back(status_of(first, *complete(first)))
    status = history.with_history_limit(observe(job), 0)
    assert (status.run.number, status.history) == (1, ())
    assert runs.current_run(job_of(status, training={"learningRate": 0.25}), ()).number == 3


def test_a_run_keeps_what_changed_and_what_it_cost() -> None:
    trained = attempt_of(Stage.TRAIN, 1, None, plan=AttemptPlan(nodes=4), gpus=8)
    first = status_of(job_of(), attempt_of(Stage.PREPARE), trained, ended=False)
    spec = {**CHANGED, "runNonce": "x" * 63, "data": {"maxLength": 64}}
    second = observe(job_of(first, **spec), "2026-01-01T12:01:40Z")
    (past,) = second.history
    assert (past.result, past.attempts[-1].outcome) == ("Superseded", Outcome.STOPPED)
    assert past.cost == CostStatus(pod_seconds=400, gpu_seconds=800)
    assert second.run.changes[0] == "spec.data.maxLength: default -> 64"
    assert len(second.run.changes) == 3


def test_long_values_and_many_changes_fit_into_status() -> None:
    many = [{"uri": f"s3://bucket/{'x' * 200}-{number}.jsonl"} for number in range(3)]
    other = [{**entry, "uri": entry["uri"].replace("-2", "-3")} for entry in many]
    first = status_of(job_of(data={"train": many}), ended=False)
    config = {f"key{number}": {"value": "y" * 300} for number in range(60)}
    job = job_of(first, data={"train": other}, deepspeed={"config": config}, **CHANGED)
    after = observe(job)
    assert any(change.startswith("spec.data.train") for change in after.run.changes), "the digest shows the difference"
    assert parse_job(merged(make_job(), {"status": after.written()})).status == after


def test_past_runs_without_files_are_marked() -> None:
    here = ResolvedStatus(dataset="s3://b/out/datasets/0f")
    past = tuple(PastRun(number=number, result="Succeeded", artifact=ARTIFACT, resolved=here) for number in (1, 2, 3))
    elsewhere = past[0].model_copy(update={"resolved": ResolvedStatus(dataset="s3://b/out-2/datasets/0f"), "number": 9})
    assert history.without_files(Status(history=(elsewhere,)), (4,), "s3://b/out").history == (elsewhere,)
    marked = history.without_files(Status(history=past), (2, 4), "s3://b/out")
    assert [(entry.number, entry.files_deleted, entry.artifact is None) for entry in marked.history] == [
        (1, True, True),
        (2, None, False),
        (3, True, True),
    ]
    assert history.without_files(Status(history=past), (), "s3://b/out").history == past


def test_a_run_is_not_reused_while_an_evaluation_may_delete_its_files() -> None:
    first = job_of(output={"keepRuns": 1})
    _, second = changed_and_back(status_of(first, *complete(first)), output={"keepRuns": 1})
    evaluating = second.with_run(attempts=(attempt_of(Stage.EVALUATE, 1, None),))
    assert runs.current_run(job_of(evaluating, output={"keepRuns": 1}), ()).number == 3
    assert runs.current_run(job_of(evaluating), ()).number == 1, "without keepRuns, nothing is deleted"
