"""The shape of status: earlier versions are read, past runs are kept, values are readable."""

from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.v1alpha1 import (
    ArtifactStatus,
    AttemptPlan,
    CandidateName,
    CandidateStatus,
    Condition,
    FineTuneJob,
    Metric,
    ProgressStatus,
    Status,
)
from finetune_api.v1alpha1.quantities import short_duration
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import history, runs, steps
from finetune_operator.policy.after_change import continued_after_change
from finetune_operator.policy.status import status_after
from statuses import make_status

THEN, NOW = "2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z"

FLAT: dict[str, Any] = {
    "observedGeneration": 4,
    "phase": "Training",
    "run": 3,
    "runHash": "0123456789abcdef",
    "failedWith": "fedcba9876543210",
    "stage": "train",
    "attempt": 2,
    "startTime": THEN,
    "restarts": 1,
    "disruptions": 2,
    "warnings": ["a warning"],
    "chosen": {"task": "CausalLM", "zeroStage": 2},
    "lastCheckpoint": {"uri": "s3://b/c.json", "step": 40, "time": THEN},
    "evaluation": {"baseline": {"Loss": 2.0}, "tuned": {"Loss": 1.0}},
    "artifact": {"uri": "s3://b/model", "digest": "d"},
    "attempts": [
        {"stage": "train", "number": 1, "jobName": "a1", "startTime": THEN, "nodes": 4, "forgiven": True},
        {"stage": "train", "number": 2, "jobName": "a2", "startTime": THEN, "nodes": 4, "fewerNodes": 2},
    ],
    "suspendedSeconds": 7.5,
}


def job_with(status: dict[str, Any], **spec: Any) -> FineTuneJob:
    return parse_job({**make_job(**spec), "status": status})


@pytest.mark.parametrize("read", [Status.read, lambda written: job_with(written).status], ids=["status", "object"])
def test_a_status_in_the_flat_shape_of_earlier_versions_is_read_without_loss(read: Any) -> None:
    status: Status = read(FLAT)
    run = status.run
    assert (status.observed_generation, status.phase) == (4, Phase.TRAINING)
    assert (run.number, run.spec_hash, run.failed_spec_hash) == (3, "0123456789abcdef", None)
    assert (run.stage, run.attempt, run.restarts, run.disruptions, run.suspended_seconds) == ("train", 2, 1, 2, 7.5)
    assert (run.start_time, run.warnings) == (THEN, ("a warning",))
    assert run.resolved is not None
    assert (run.resolved.task, run.resolved.zero_stage) == ("CausalLM", 2)
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.step == 40
    assert status.metrics_of(CandidateName.TUNED) == {Metric.LOSS: 1.0}
    assert status.metrics_of(CandidateName.BASE_MODEL) == {Metric.LOSS: 2.0}
    assert run.artifact is not None
    assert [entry.superseded_by_spec_change for entry in run.attempts] == [True, None]
    assert [entry.plan for entry in run.attempts] == [AttemptPlan(nodes=4)] * 2
    assert run.next_plan == AttemptPlan(nodes=2)
    assert Status.read(status.written()) == status


def test_values_of_a_run_under_earlier_names_are_read() -> None:
    written = {
        "run": {
            "number": 3,
            "resolved": {"packing": "LengthGrouped", "zeroStage": 2},
            "candidates": {"baseline": {"metrics": {"Loss": 2.0}}},
        }
    }
    status = Status.read(written)
    assert status.run.resolved is not None
    assert (status.run.resolved.batching, status.run.resolved.zero_stage) == ("LengthGrouped", 2)
    assert status.metrics_of(CandidateName.BASE_MODEL) == {Metric.LOSS: 2.0}
    assert job_with(written).status == status


HASHES_BEFORE_SCOPES = {
    "plain": ({}, "6422fa64eec59ba7"),
    "all blocks": (
        {
            "method": {"lora": {"rank": 4}},
            "evaluation": {"maxNewTokens": 128},
            "output": {"uri": "s3://bucket/out", "formats": ["Merged"]},
            "deepspeed": {"zeroStage": 3},
            "training": {"learningRate": 0.1, "microBatchSize": 2, "epochs": 3},
        },
        "2b2513ed0f42b3b1",
    ),
}
"""Hashes of these specs as the operators before field scopes computed them."""
HASH_OF_THE_BRANCH = "eb5f1e7c2b43e889"


@pytest.mark.parametrize("name", HASHES_BEFORE_SCOPES)
def test_a_run_that_an_earlier_operator_started_continues(name: str) -> None:
    blocks, known = HASHES_BEFORE_SCOPES[name]
    job = job_with({"run": 3, "runHash": known, "phase": "Training"}, **blocks)
    run = runs.current_run(job, ())
    assert run == runs.Run(3, runs.run_hash(job.spec), is_new=False)
    status = history.apply_observation(job.status, run, Observed(()), None, NOW)
    assert status.run.spec_hash == run.hash, "from now on the hash follows the scopes"
    changed = job_with({"run": 3, "runHash": known}, **blocks, runNonce="again")
    assert runs.current_run(changed, ()).number == 4


def condition(kind: ConditionType, reason: Reason, message: str = "") -> Condition:
    return Condition(type=kind, status="True", reason=reason, message=message, last_transition_time=THEN)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ((condition(ConditionType.COMPLETE, Reason.SUCCEEDED, "done"),), ("Succeeded", "", "")),
        (
            (condition(ConditionType.FAILED, Reason.RESTARTS_EXHAUSTED, "train failed: boom\nlines"),),
            ("Failed", "RestartsExhausted", "train failed: boom"),
        ),
        ((condition(ConditionType.READY, Reason.TRAINING),), ("Superseded", "", "")),
    ],
    ids=["succeeded", "failed", "superseded"],
)
def test_a_run_that_is_replaced_is_kept_in_the_history(
    conditions: tuple[Condition, ...], expected: tuple[str, str, str]
) -> None:
    before = make_status(
        run=2,
        spec_hash="old",
        conditions=conditions,
        start_time=THEN,
        artifact=ArtifactStatus(uri="s3://b/model", digest="d"),
        candidates={CandidateName.TUNED: CandidateStatus(metrics={Metric.LOSS: 1.0})},
        progress=ProgressStatus(step=7, total_steps=9),
    )
    after = history.apply_observation(before, runs.Run(3, "new", is_new=True), Observed(()), None, NOW)
    (past,) = after.history
    assert (past.result, past.reason, past.message) == expected
    assert (past.number, past.spec_hash, past.start_time, past.step) == (2, "old", THEN, 7)
    assert (past.artifact, past.candidates) == (before.run.artifact, before.run.candidates)
    assert (after.run.number, after.run.spec_hash, after.run.artifact, after.run.attempts) == (3, "new", None, ())


def test_the_history_keeps_the_newest_runs_oldest_first() -> None:
    status = Status()
    for number in range(1, 14):
        run = runs.Run(number, f"h{number}", is_new=True)
        status = history.apply_observation(status, run, Observed(()), None, NOW)
    status = history.with_history_limit(status, 10)
    assert [past.number for past in status.history] == list(range(3, 13))
    assert status.run.number == 13


def test_the_columns_of_kubectl_are_readable() -> None:
    progress = ProgressStatus(step=27, total_steps=100, percent=27, loss=1.4480993092066088, eta_seconds=134)
    status = make_status(run=1, stage="train", attempt=1, progress=progress)
    after = status_after(status, steps.Watch(Stage.TRAIN, 1), generation=1, now=NOW)
    assert after.display is not None
    assert (after.display.progress, after.display.loss, after.display.eta) == ("27%", "1.448", "2m14s")
    assert status_after(make_status(run=1), steps.Watch(Stage.PREPARE, 1), generation=1, now=NOW).display is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (60, "1m"), (134, "2m14s"), (3600, "1h"), (11_100, "3h5m"), (187_200, "2d4h")],
)
def test_a_short_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


@pytest.mark.parametrize("artifact", [None, ArtifactStatus(uri="s3://b/model", digest="d")], ids=["none", "trained"])
def test_a_trained_model_is_available_for_any_result_of_its_evaluation(artifact: ArtifactStatus | None) -> None:
    status = make_status(run=1, stage="evaluate", attempt=1, artifact=artifact)
    failed = steps.Finish(False, Reason.EVALUATE_FAILED, "evaluate failed: boom")
    after = status_after(status, failed, generation=1, now=NOW)
    found = {entry.type: (entry.status, entry.message) for entry in after.conditions}
    assert found[ConditionType.FAILED][0] == "True"
    assert found[ConditionType.MODEL_AVAILABLE] == (("True", "s3://b/model") if artifact else ("False", ""))
    assert after.run.artifact == artifact


def test_a_run_that_failed_under_an_earlier_operator_is_not_restarted_by_an_upgrade() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "RestartsExhausted", "lastTransitionTime": THEN}
    job = job_with({**FLAT, "phase": "Failed", "conditions": [failed]})
    assert continued_after_change(job.status, job.spec, NOW) == job.status


def test_a_run_of_an_earlier_operator_whose_commit_was_pinned_continues() -> None:
    """`hf://org/name` was prepared; the user then wrote the resolved commit into the spec."""
    blocks = {"model": {"uri": "hf://org/name@0123abc"}}
    resolved = {"modelRevision": "0123abc", "requestedRevision": ""}
    job = job_with({"run": 3, "runHash": HASH_OF_THE_BRANCH, "phase": "Training", "chosen": resolved}, **blocks)
    assert runs.current_run(job, ()) == runs.Run(3, runs.run_hash(job.spec), is_new=False)
    assert runs.current_run(job, ()).is_adopted


@pytest.mark.parametrize("text", ['{"nodes": 0}', '{"nodes": 2, "microBatchLimit": 0}', '{"nodes": -1}', "{}", "nodes"])
def test_an_invalid_plan_in_an_annotation_is_ignored(text: str) -> None:
    job = {
        "metadata": {
            "name": "a",
            "labels": {"finetune.dev/stage": "train", "finetune.dev/run": "1", "finetune.dev/attempt": "1"},
            "annotations": {"finetune.dev/attempt-plan": text},
            "ownerReferences": [{"uid": "u", "controller": True}],
            "uid": "j",
        }
    }
    (stage,) = Observed.from_manifests("u", [job], []).attempts
    assert stage.plan is None
