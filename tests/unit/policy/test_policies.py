"""The decisions as tables: (spec, observed, now) -> decision."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from factories import make_prepared
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.exit_codes import ExitCode, RetryClass
from finetune_api.progress import CommittedCheckpoint, Progress, TerminationMessage, TrainResult
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import (
    ArtifactStatus,
    AttemptStatus,
    FineTuneJob,
    Outcome,
    ResolvedStatus,
    RuleStatus,
    Status,
)
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed, ObservedAttempt, ObservedPod
from finetune_operator.policy import failure, history, runs, status, steps, world
from observations import STAMP, make_pod, make_stage
from statuses import make_status

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
LATER = "2026-01-01T12:00:30Z"


def make_job(**spec: Any) -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "example", "uid": "u1"},
            "spec": {
                "model": {"uri": "s3://bucket/model"},
                "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
                "training": {"learningRate": 2e-5},
                "output": {"uri": "s3://bucket/out"},
            }
            | spec,
        }
    )


def folded(observed: Observed, before: Status | None = None, progress: Progress | None = None) -> Status:
    run = runs.Run(1, "hash", is_new=before is None)
    return history.apply_observation(before or Status(), run, observed, progress, STAMP)


def decided(job: FineTuneJob, *children: ObservedAttempt, before: Status | None = None) -> steps.Step:
    observed = Observed(children)
    run = runs.Run(1, "hash", is_new=False)
    return steps.decide(job.spec, run, folded(observed, before), observed, now=NOW, max_backoff_seconds=300)


PREPARED = make_stage(Stage.PREPARE, ended="Complete")
TRAINED = make_stage(Stage.TRAIN, ended="Complete")
CRASHED = make_stage(Stage.TRAIN, ended="Failed", pods=(make_pod(0, 70),))


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ((), steps.Start(Stage.PREPARE, 1)),
        ((make_stage(Stage.PREPARE),), steps.Watch(Stage.PREPARE, 1)),
        ((PREPARED,), steps.Start(Stage.TRAIN, 1)),
        ((PREPARED, make_stage()), steps.Watch(Stage.TRAIN, 1)),
        ((PREPARED, TRAINED), steps.Start(Stage.EVALUATE, 1)),
        ((PREPARED, CRASHED), steps.Start(Stage.TRAIN, 2)),
        ((PREPARED, CRASHED, make_stage(attempt=2)), steps.Watch(Stage.TRAIN, 2)),
    ],
)
def test_the_next_step_follows_from_the_children(children: tuple[ObservedAttempt, ...], expected: steps.Step) -> None:
    assert decided(make_job(), *children) == expected


def test_the_run_is_complete_after_its_evaluation() -> None:
    decision = decided(make_job(), PREPARED, TRAINED, make_stage(Stage.EVALUATE, ended="Complete"))
    assert isinstance(decision, steps.Finish)
    assert decision.succeeded


def test_a_suspended_job_is_stopped_and_then_stays_suspended() -> None:
    running = make_stage()
    assert decided(make_job(suspend=True), PREPARED, running) == steps.Stop((running,))
    assert decided(make_job(suspend=True), PREPARED) == steps.StaySuspended()


def test_a_job_stopped_for_a_suspension_continues_with_a_new_attempt_without_a_charge() -> None:
    before = folded(Observed((PREPARED, make_stage())))
    after = folded(Observed((PREPARED,)), before)
    assert after.run.attempts[-1].outcome is Outcome.STOPPED
    assert (after.run.restarts, after.run.disruptions) == (0, 0)
    assert decided(make_job(), PREPARED, before=before) == steps.Start(Stage.TRAIN, 2)


def test_children_of_an_older_run_are_stopped_first() -> None:
    old = make_stage()
    observed = Observed((old,))
    run = runs.Run(2, "other", is_new=True)
    after = history.apply_observation(folded(observed), run, observed, None, STAMP)
    decision = steps.decide(make_job().spec, run, after, observed, now=NOW, max_backoff_seconds=300)
    expected = "run 2 starts when the pods of the previous run have ended"
    assert decision == steps.Stop((old,), Reason.SPEC_CHANGED, expected)
    assert after.run.attempts == ()


def test_a_pod_without_a_termination_message_is_explained_by_the_end_of_its_log() -> None:
    tail = 'ng half a line"}\n{"level": "INFO", "message": "step 7", "rank": 0}\nKilled\n'
    failed = make_stage(ended="Failed", pods=(make_pod(0, 137, raw_message=tail),))
    failure = folded(Observed((PREPARED, failed))).run.failure
    assert failure is not None
    assert failure.message.splitlines() == ["pod-0 ended with status 137", 'ng half a line"}', "step 7", "Killed"]


@pytest.mark.parametrize("exit_code", [None, 0, 75, 137])
def test_an_evicted_pod_is_the_cause_for_any_exit_codes_of_the_pods(exit_code: int | None) -> None:
    """The other pods lose their peer; the kubelet may have no status of the evicted pod's containers."""
    evicted = make_pod(1, exit_code, phase="Failed", kubelet_reason="Evicted", kubelet_message="low on memory")
    failed = make_stage(ended="Failed", pods=(make_pod(0, 70), evicted), expected_pods=2)
    after = folded(Observed((PREPARED, failed)))
    assert (after.run.attempts[-1].outcome, after.run.attempts[-1].reason) == (Outcome.DISRUPTION, "Evicted")
    assert isinstance(decided(make_job(), PREPARED, failed), steps.Backoff)


def test_a_deleted_pod_is_named_after_its_deletion() -> None:
    failed = make_stage(ended="Failed", pods=(make_pod(0, int(ExitCode.STOPPED)),), expected_pods=2)
    status = folded(Observed((PREPARED, failed)))
    assert status.run.failure is not None
    assert (status.run.failure.failure_class, status.run.failure.pod) == ("PodDeleted", "example-r1-train-a1-1")
    assert status.run.failure.message.startswith("example-r1-train-a1-1 was deleted, so the other pods were stopped: ")
    assert (status.run.attempts[-1].outcome, status.run.restarts, status.run.disruptions) == (Outcome.DISRUPTION, 0, 1)


def test_a_lost_attempt_ends_when_it_is_given_up() -> None:
    """Its Job never reports an end, and the API server rejects an empty time."""
    lost = make_stage(lost=True, pods=(make_pod(1, due_at=STAMP, node="node-b"),))
    status = folded(Observed((PREPARED, lost)))
    attempt = status.run.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.end_time) == (Outcome.DISRUPTION, "NodeLost", STAMP)
    assert decided(make_job(), PREPARED, lost) == steps.Start(Stage.TRAIN, 2)


def test_a_permanent_failure_is_not_retried() -> None:
    failed = make_stage(Stage.PREPARE, ended="Failed", pods=(make_pod(0, int(ExitCode.BAD_DATA)),))
    decision = decided(make_job(), failed)
    assert isinstance(decision, steps.Finish)
    assert (decision.succeeded, decision.reason) == (False, Reason.PREPARE_FAILED)


def test_an_end_is_charged_once_for_any_number_of_observations() -> None:
    observed = Observed((PREPARED, CRASHED))
    once = folded(observed)
    assert once.run.restarts == 1
    assert folded(observed, once) == once


def test_restarts_are_reset_by_a_new_checkpoint() -> None:
    checkpoint = CommittedCheckpoint(step=60, uri="s3://bucket/m", time=STAMP, save_seconds=1.0)
    message = TerminationMessage(
        stage="train",
        exit_code=70,
        progress=Progress(stage="train", attempt=1, step=80, resumed_from_step=40, last_checkpoint=checkpoint),
    )
    before = folded(Observed((PREPARED,))).with_run(restarts=2)
    crashed = replace(CRASHED, pods=(make_pod(0, 70, message=message),))
    after = folded(Observed((PREPARED, crashed)), before)
    assert after.run.restarts == 1
    assert after.run.attempts[-1].last_step == 80
    assert after.run.last_checkpoint is not None
    assert after.run.last_checkpoint.step == 60


def test_each_stage_has_its_own_restarts() -> None:
    failed = make_stage(Stage.PREPARE, ended="Failed", pods=(make_pod(0, 70),))
    again = make_stage(Stage.PREPARE, attempt=2, ended="Complete")
    status = folded(Observed((failed, again)))
    assert status.run.restarts == 1
    status = folded(Observed((failed, again, CRASHED)), status)
    assert status.run.restarts == 1
    status = folded(Observed((failed, again, CRASHED, crashed(2))), status)
    assert status.run.restarts == 2
    trained = make_stage(attempt=3, ended="Complete")
    evaluated = make_stage(Stage.EVALUATE, ended="Failed", pods=(make_pod(0, 70),))
    assert folded(Observed((failed, again, CRASHED, crashed(2), trained, evaluated)), status).run.restarts == 1


def saved_by(number: int, step: int, **fields: Any) -> ObservedAttempt:
    """A failed training attempt whose last message reports a checkpoint at `step`."""
    checkpoint = CommittedCheckpoint(step=step, uri="s3://bucket/m", time=STAMP, save_seconds=1.0)
    reported = Progress(stage="train", attempt=number, step=step, last_checkpoint=checkpoint, **fields)
    message = TerminationMessage(stage="train", exit_code=70, progress=reported)
    return make_stage(attempt=number, ended="Failed", pods=(make_pod(0, 70, message=message),))


def crashed(number: int, **fields: Any) -> ObservedAttempt:
    """A training attempt that failed before it reported anything."""
    return make_stage(attempt=number, ended="Failed", pods=(make_pod(0, 70, **fields),))


def test_attempts_that_end_before_they_report_anything_reach_max_restarts() -> None:
    """The checkpoint that they start from does not count as their progress."""
    status = folded(Observed((PREPARED, saved_by(1, step=60))))
    counted = []
    for number in range(2, 6):
        status = folded(Observed((PREPARED, crashed(number))), status)
        counted.append(status.run.restarts)
    assert counted == [2, 3, 4, 5]
    limits = make_job(restart={"maxRestarts": 3})
    decision = decided(limits, PREPARED, crashed(5), before=status)
    assert isinstance(decision, steps.Finish)
    assert decision.reason is Reason.RESTARTS_EXHAUSTED


def test_steps_that_are_saved_again_after_a_fall_back_are_not_progress() -> None:
    status = folded(Observed((PREPARED, saved_by(1, step=60))))
    status = folded(Observed((PREPARED, saved_by(2, step=40, resumed_from_step=20))), status)
    status = folded(Observed((PREPARED, saved_by(3, step=60, resumed_from_step=40))), status)
    assert status.run.restarts == 3
    assert folded(Observed((PREPARED, saved_by(4, step=80, resumed_from_step=60))), status).run.restarts == 1


def test_the_save_interval_is_reported() -> None:
    message = TerminationMessage(
        stage="train",
        exit_code=70,
        progress=Progress(stage="train", attempt=1, step=80, total_steps=100, checkpoint_every=20),
    )
    after = folded(Observed((PREPARED, replace(CRASHED, pods=(make_pod(0, 70, message=message),)))))
    assert after.run.progress is not None
    assert after.run.progress.checkpoint_every_steps == 20


def warned(number: int, *warnings: str) -> ObservedAttempt:
    reported = TerminationMessage(
        stage="train", exit_code=70, progress=Progress(stage="train", attempt=number, warnings=warnings)
    )
    return make_stage(attempt=number, ended="Failed", pods=(make_pod(0, 70, message=reported),))


def test_a_result_that_the_kubelet_cut_is_recorded_with_a_warning() -> None:
    trained = TrainResult(model_uri="s3://b/m", digest="d", final_step=9)
    text = TerminationMessage(stage="train", exit_code=0, trained=trained, last_lines=("x" * 99,)).encode()
    for raw, warnings in ((text, 0), (text[:-50], 1)):
        pod = make_pod(0, 0, message=TerminationMessage.decode(raw), raw_message=raw)
        after = folded(Observed((PREPARED, make_stage(ended="Complete", pods=(pod,)))))
        assert after.run.artifact == ArtifactStatus(uri="s3://b/m", digest="d")
        assert len(after.run.warnings) == warnings
    assert after.run.warnings[0].startswith("pod-0: the kubelet cut the result of the trainer")


def test_the_last_warnings_of_the_attempts_of_a_run_are_kept_once() -> None:
    first = folded(Observed((PREPARED, warned(1, "no conditions", "step 2 is damaged"))))
    assert first.run.warnings == ("no conditions", "step 2 is damaged")
    second = folded(Observed((PREPARED, warned(2, "no conditions", "x" * 2000))), first)
    assert second.run.warnings == (*first.run.warnings, "x" * 1024)
    many = folded(Observed((PREPARED, warned(3, *map(str, range(20))))), second)
    assert many.run.warnings == tuple(map(str, range(4, 20)))


def test_only_ten_attempts_are_kept_and_the_oldest_are_not_charged_again() -> None:
    crashes = tuple(make_stage(attempt=number, ended="Failed", pods=(make_pod(0, 70),)) for number in range(1, 14))
    first = folded(Observed((PREPARED, *crashes)))
    assert len(first.run.attempts) == 10
    again = folded(Observed((PREPARED, *crashes)), first)
    assert (again.run.restarts, again.run.attempts) == (first.run.restarts, first.run.attempts)


@pytest.mark.parametrize(
    ("pods", "kind", "blamed"),
    [
        ((make_pod(0, 75), make_pod(1, 137)), RetryClass.RETRYABLE, "pod-1"),
        ((make_pod(0, 70, finished_at=LATER), make_pod(1, 80)), RetryClass.RETRYABLE, "pod-1"),
        ((make_pod(0, 70), make_pod(1, 137)), RetryClass.RETRYABLE, "pod-1"),
        ((make_pod(0, 70), make_pod(1, 137, finished_at=LATER)), RetryClass.RETRYABLE, "pod-0"),
        ((make_pod(0, 70), make_pod(1, 65, finished_at=LATER)), RetryClass.PERMANENT, "pod-1"),
        ((make_pod(0, 70), make_pod(1, 137, finished_at=LATER, disrupted=True)), RetryClass.DISRUPTION, "pod-1"),
        ((make_pod(0, 75), make_pod(1, 75)), RetryClass.DISRUPTION, "pod-0"),
        ((make_pod(0, 83), make_pod(1, 143)), RetryClass.DISRUPTION, "pod-0"),
        ((), RetryClass.DISRUPTION, ""),
    ],
)
def test_the_cause_is_the_first_pod_that_failed_by_itself(
    pods: tuple[ObservedPod, ...], kind: RetryClass, blamed: str
) -> None:
    judged = failure.classify_failure(make_stage(ended="Failed", pods=pods))
    assert (judged.retry_class, judged.status.pod) == (kind, blamed)


def test_a_failure_has_the_message_of_the_trainer() -> None:
    message = TerminationMessage(
        stage="train", exit_code=81, error="loss is NaN at step 7", advice="lower it", rank=1, last_lines=("a", "b")
    )
    judged = failure.classify_failure(make_stage(ended="Failed", pods=(make_pod(0, 81, message=message),))).status
    assert (judged.failure_class, judged.rank, judged.advice) == ("Diverged", 1, "lower it")
    assert judged.message == "loss is NaN at step 7\na\nb"


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        ({}, False),
        ({"suspend": True}, False),
        ({"workers": {"nodes": 2}}, False),
        ({"restart": {"maxRestarts": 9}}, False),
        ({"deepspeed": {"zeroStage": 3, "offload": "OptimizerAndParameters"}}, False),
        ({"deepspeed": {"config": {"wall_clock_breakdown": True}}}, True),
        ({"training": {"learningRate": 2e-5, "microBatchSize": 4, "gradientCheckpointing": False}}, False),
        ({"training": {"learningRate": 3e-5}}, True),
        ({"data": {"train": [{"uri": "s3://bucket/other.jsonl"}]}}, True),
        ({"runNonce": "again"}, True),
    ],
)
def test_a_change_of_the_result_is_a_new_run(change: dict[str, Any], is_new: bool) -> None:
    first = runs.current_run(make_job(), ())
    assert (first.number, first.is_new) == (1, True)
    job = make_job(**change).model_copy(update={"status": make_status(run=1, spec_hash=first.hash)})
    second = runs.current_run(job, ())
    assert (second.is_new, second.number) == (is_new, 2 if is_new else 1)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("before", "requested", "after", "is_new"),
    [
        ("hf://org/name", "", f"hf://org/name@{COMMIT}", False),
        ("hf://org/name@main", "main", f"hf://org/name@{COMMIT}", False),
        ("hf://org/name@v1", "v1", f"hf://org/name@{COMMIT}", False),
        ("hf://org/name@refs/pr/3", "refs/pr/3", f"hf://org/name@{COMMIT}", False),
        (f"hf://org/name@{COMMIT[:7]}", COMMIT[:7], f"hf://org/name@{COMMIT}", False),
        ("hf://gpt2", "", f"hf://gpt2@{COMMIT}", False),
        ("hf://org/name", None, f"hf://org/name@{COMMIT}", False),
        ("hf://org/name@main", None, f"hf://org/name@{COMMIT}", False),
        ("hf://org/name", "", f"hf://org/name@{COMMIT[::-1]}", True),
        ("hf://org/name", "", f"hf://org/other@{COMMIT}", True),
        ("hf://org/name", "", "hf://org/name@v2", True),
        ("hf://org/name@v1", "v1", f"hf://org/name@{COMMIT[::-1]}", True),
        ("hf://org/name@v1", "v1", f"hf://org/other@{COMMIT}", True),
        ("hf://org/name@v1", "v1", "hf://org/name@v2", True),
        ("hf://org/name@v1", "v1", "hf://org/name", True),
    ],
)
def test_pinning_the_commit_that_a_run_was_prepared_with_starts_no_new_run(
    before: str, requested: str | None, after: str, is_new: bool
) -> None:
    """None: prepared before the revision was recorded."""
    first = runs.current_run(make_job(model={"uri": before}), ())
    chosen = ResolvedStatus(model_revision=COMMIT, requested_revision=requested)
    status = make_status(run=1, spec_hash=first.hash, resolved=chosen)
    job = make_job(model={"uri": after}).model_copy(update={"status": status})
    run = runs.current_run(job, ())
    assert (run.is_new, run.number) == (is_new, 2 if is_new else 1)
    assert is_new or run.hash == first.hash


def test_status_keeps_the_learning_rate_that_the_training_has_chosen() -> None:
    before = make_status(run=1, resolved=RESOLVED.model_copy(update={"learning_rate": None}))
    running = Observed((PREPARED, make_stage()))
    reported = Progress(stage="train", attempt=1, chosen_learning_rate=3e-4)
    after = folded(running, before, reported)
    for found in (after, folded(running, after, Progress(stage="train", attempt=1, step=3, zero_stage=3))):
        assert found.run.resolved is not None
        assert found.run.resolved.learning_rate == 3e-4


def test_status_keeps_what_the_rules_of_the_data_did() -> None:
    prepared = make_prepared(rules=({"rule": "redact", "changed": 3}, {"rule": "nearDuplicates", "dropped": 2}))
    pod = replace(make_pod(0, 0), message=TerminationMessage(stage="prepare", exit_code=0, prepared=prepared))
    found = folded(Observed((make_stage(Stage.PREPARE, ended="Complete", pods=(pod,)),))).run.resolved
    assert found is not None
    assert found.rules == (RuleStatus(rule="redact", changed=3), RuleStatus(rule="nearDuplicates", dropped=2))


def test_status_keeps_the_revision_that_the_preparation_resolved() -> None:
    prepared = make_prepared(model_revision=COMMIT, requested_revision="v1")
    pod = replace(make_pod(0, 0), message=TerminationMessage(stage="prepare", exit_code=0, prepared=prepared))
    chosen = folded(Observed((make_stage(Stage.PREPARE, ended="Complete", pods=(pod,)),))).run.resolved
    assert chosen is not None
    assert (chosen.requested_revision, chosen.model_revision) == ("v1", COMMIT)


def test_status_has_the_notes_of_the_preparation_within_its_limits() -> None:
    prepared = make_prepared(notes=("x" * 2000, *map(str, range(9))))
    pod = replace(make_pod(0, 0), message=TerminationMessage(stage="prepare", exit_code=0, prepared=prepared))
    found = folded(Observed((make_stage(Stage.PREPARE, ended="Complete", pods=(pod,)),))).run.notes
    assert found == ("x" * 1024, *map(str, range(7)))


@pytest.mark.parametrize(
    ("known", "begun", "number"),
    [
        (0, {1: "asked for"}, 1),
        (0, {1: ""}, 1),
        (0, {1: "another"}, 2),
        (1, {1: "another"}, 2),
        (1, {1: "another", 2: "a third"}, 3),
        (1, {1: "another", 2: "asked for"}, 2),
        (1, {1: "another", 2: "asked for", 3: "a third"}, 2),
    ],
    ids=["died", "of an older operator", "changed", "known", "changed twice", "died again", "changed back"],
)
def test_a_run_never_starts_with_the_number_of_another_spec(known: int, begun: dict[int, str], number: int) -> None:
    job = make_job().model_copy(update={"status": make_status(run=known, spec_hash="another" if known else "")})
    wanted = runs.run_hash(job.spec)
    children = [
        make_stage(Stage.PREPARE, run=run, run_hash=wanted if meant == "asked for" else meant)
        for run, meant in begun.items()
    ]
    assert runs.current_run(job, children) == runs.Run(number, wanted, is_new=True)


@pytest.mark.parametrize(
    ("nodes", "gpus", "batch", "micro", "expected"),
    [
        (1, 0, 16, None, (16, 1)),
        (2, 0, 16, None, (8, 1)),
        (2, 8, 512, None, (16, 2)),
        (1, 0, 30, None, (15, 2)),
        (1, 0, 34, None, (2, 17)),
        (2, 0, 16, 2, (2, 4)),
    ],
)
def test_a_step_is_divided_without_a_remainder(
    nodes: int, gpus: int, batch: int, micro: int | None, expected: tuple[int, int]
) -> None:
    training = {"learningRate": 1e-4, "globalBatchSize": batch} | ({"microBatchSize": micro} if micro else {})
    job = make_job(workers={"nodes": nodes, "gpusPerNode": gpus}, training=training)
    plan = world.batch_plan(job.spec)
    assert (plan.micro_size, plan.accumulation) == expected
    assert plan.micro_size * plan.accumulation * world.world(job.spec, Stage.TRAIN).size == batch


def test_a_jobs_own_storage_has_precedence_over_that_of_the_operator() -> None:
    defaults = StorageSettings(endpoint="http://default:1", region="eu-west-1", path_style=True)
    block = make_job(storage={"endpoint": "https://own:9000", "pathStyle": False}).spec.storage
    own = world.storage_settings(block, defaults)
    assert own == StorageSettings(endpoint="https://own:9000", region="eu-west-1", path_style=False)
    assert world.storage_settings(make_job().spec.storage, defaults) == defaults


@pytest.mark.parametrize(
    ("decision", "phase", "true_conditions"),
    [
        (steps.Start(Stage.PREPARE, 1), Phase.PREPARING, {"Accepted", "Ready", "Reconciling"}),
        (steps.Watch(Stage.TRAIN, 1), Phase.TRAINING, {"Accepted", "Ready", "Reconciling"}),
        (steps.Watch(Stage.EVALUATE, 1), Phase.EVALUATING, {"Accepted", "Ready", "Reconciling"}),
        (steps.Start(Stage.TRAIN, 2), Phase.RESTARTING, {"Accepted", "Reconciling"}),
        (steps.Start(Stage.PREPARE, 2), Phase.PREPARING, {"Accepted", "Reconciling"}),
        (steps.Watch(Stage.PREPARE, 2), Phase.PREPARING, {"Accepted", "Reconciling"}),
        (steps.Watch(Stage.EVALUATE, 3), Phase.EVALUATING, {"Accepted", "Reconciling"}),
        (steps.Backoff(5.0, STAMP), Phase.RESTARTING, {"Accepted", "Reconciling"}),
        (steps.StaySuspended(), Phase.SUSPENDED, {"Accepted", "Suspended"}),
        (steps.Finish(True, Reason.SUCCEEDED, ""), Phase.SUCCEEDED, {"Accepted", "Ready", "Complete"}),
        (steps.Finish(False, Reason.RESTARTS_EXHAUSTED, ""), Phase.FAILED, {"Accepted", "Stalled", "Failed"}),
    ],
)
def test_status_reports_the_phase_of_the_job(decision: steps.Step, phase: Phase, true_conditions: set[str]) -> None:
    status_after = status.status_after(make_status(run=1), decision, generation=4, now=STAMP)
    assert (status_after.phase, status_after.observed_generation) == (phase, 4)
    assert {entry.type for entry in status_after.conditions if entry.status == "True"} == true_conditions


def test_a_restarted_training_is_ready_from_its_first_step_and_another_stage_is_not_ready_by_that_step() -> None:
    trained = AttemptStatus(stage=Stage.TRAIN, number=2, job_name="a", start_time=STAMP, first_step_time=STAMP)
    before = make_status(run=1, attempts=(trained,))
    training = status.status_after(before, steps.Watch(Stage.TRAIN, 2), generation=1, now=STAMP)
    evaluating = status.status_after(before, steps.Watch(Stage.EVALUATE, 2), generation=1, now=STAMP)
    ready = [
        any(entry.type == "Ready" and entry.status == "True" for entry in found.conditions)
        for found in (training, evaluating)
    ]
    assert ready == [True, False]


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = status.status_after(make_status(run=1), steps.Watch(Stage.TRAIN, 1), generation=1, now=STAMP)
    later = status.status_after(
        first, steps.Finish(True, Reason.SUCCEEDED, ""), generation=1, now="2026-01-01T13:00:00Z"
    )
    times = {entry.type: entry.last_transition_time for entry in later.conditions}
    assert (times["Accepted"], times["Complete"]) == (STAMP, "2026-01-01T13:00:00Z")


def test_a_deleted_pod_is_named_even_if_all_pods_are_deleted_when_the_attempt_is_classified() -> None:
    """It was observed while the attempt was still running; a pod that is stopped after the failure of another is
    not."""
    going = make_pod(1, due_at=STAMP, node="node-a")
    seen = folded(Observed((PREPARED, make_stage(pods=(make_pod(0), going), expected_pods=2))))
    judged = folded(Observed((PREPARED, make_stage(ended="Failed", expected_pods=2))), seen)
    assert judged.run.failure is not None
    assert (judged.run.failure.failure_class, judged.run.failure.pod, judged.run.failure.node) == (
        "PodDeleted",
        "pod-1",
        "node-a",
    )
    assert (judged.run.attempts[-1].outcome, judged.run.attempts[-1].reason) == (Outcome.DISRUPTION, "PodDeleted")
    assert failure.detect_disruption(make_stage(pods=(make_pod(0), going), expected_pods=2, failing=True)) is None
    assert failure.detect_disruption(make_stage(pods=(going,), deleting=True)) is None


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        ((make_pod(0, due_at=STAMP),), "example-r1-train-a1-1"),
        ((make_pod(0, exit_code=143, due_at=STAMP),), "example-r1-train-a1-1"),
        ((make_pod(0, exit_code=80),), ""),  # it failed by itself
        ((make_pod(0, phase="Failed"),), ""),  # so did this one, for example because of an init container
        ((), ""),  # which one was deleted first is unknown
    ],
)
def test_a_deleted_pod_that_is_gone_is_named_while_the_others_are_stopped(pods: Any, found: str) -> None:
    """An operator that is slow may see it only then."""
    detected = failure.detect_disruption(make_stage(pods=pods, expected_pods=2, failing=True))
    assert (detected.pod if detected else "") == found


def test_what_was_seen_first_remains_the_cause_while_the_other_pods_are_stopped() -> None:
    drained = make_pod(1, due_at=STAMP, disrupted=True, node="node-a")
    seen = folded(Observed((PREPARED, make_stage(pods=(make_pod(0), drained), expected_pods=2))))
    stopping = make_stage(pods=(make_pod(0, due_at=STAMP),), expected_pods=2, failing=True)
    later = folded(Observed((PREPARED, stopping)), seen)
    assert later.run.failure == seen.run.failure
    assert later.run.failure is not None
    assert (later.run.failure.failure_class, later.run.failure.node) == ("Disrupted", "node-a")


def test_an_observation_of_another_attempt_is_not_the_cause_of_this_one() -> None:
    going = make_pod(1, due_at=STAMP)
    seen = folded(Observed((PREPARED, make_stage(pods=(going,)))))
    children = (PREPARED, make_stage(ended="Failed"), make_stage(attempt=2, ended="Failed"))
    judged = folded(Observed(children), seen)
    assert [attempt.reason for attempt in judged.run.attempts] == ["", "PodDeleted", "Lost"]


def test_a_lack_of_workers_is_recorded_before_the_attempt_is_stopped() -> None:
    """After a crash in between, the next attempt has as many workers as recorded."""
    job = make_job(workers={"nodes": 2, "minNodes": 1, "startTimeout": "10s"})
    waiting = make_stage(
        pods=(make_pod(0), make_pod(1, phase="Pending")), expected_pods=2, created_at="2026-01-01T11:59:00Z"
    )
    before = folded(Observed((PREPARED, waiting)))
    noted = decided(job, PREPARED, waiting, before=before)
    assert isinstance(noted, steps.ScaleDown)
    assert noted.plan.nodes == 1
    after = before.with_run(next_plan=noted.plan)
    assert decided(job, PREPARED, waiting, before=after) == steps.Stop((waiting,), Reason.FEWER_WORKERS, noted.message)
    reported = status.status_after(after, noted, generation=1, now=STAMP)
    assert (reported.phase, reported.conditions[1].reason) == (Phase.RESTARTING, Reason.FEWER_WORKERS)
    ended = folded(Observed((PREPARED,)), after)
    started = decided(job, PREPARED, before=ended).planned(job.spec, ended)
    assert started == steps.Start(Stage.TRAIN, 2)
    assert isinstance(started, steps.Start)
    assert started.plan is not None
    assert (started.plan.nodes, started.plan.reason) == (1, noted.plan.reason)
    assert ended.run.restarts == ended.run.disruptions == 0


RESOLVED = ResolvedStatus(
    task="SequenceClassification", dtype="Float32", format="Classification", batching="Padded", learning_rate=2.1e-4
)


@pytest.mark.parametrize(
    ("before", "after", "is_new"),
    [
        ({"training": {}}, {"training": {"batching": "Padded"}}, False),
        ({"training": {}}, {"training": {"batching": "LengthGrouped"}}, True),
        ({"training": {}}, {"data": {"format": "Classification"}, "training": {"batching": "Padded"}}, False),
        ({}, {"model": {"uri": "s3://bucket/model", "task": "SequenceClassification", "dtype": "Float32"}}, False),
        ({}, {"model": {"uri": "s3://bucket/model", "dtype": "BFloat16"}}, True),
        ({}, {"data": {"test": {"fraction": 0.1, "stratify": True}}}, False),
        ({}, {"data": {"test": {"fraction": 0.1, "stratify": False}}}, True),
        ({"training": {"batching": "Padded"}}, {}, True),
        ({"training": {}}, {"training": {"learningRate": 2.1e-4}}, False),
        ({"training": {}}, {"training": {"learningRate": 2e-4}}, True),
        ({"training": {"learningRate": 2.1e-4}}, {"training": {}}, True),
        ({"training": {"batching": "Padded"}}, {"training": {"batching": "Padded"}}, False),
    ],
)
def test_spelling_out_an_automatic_value_starts_no_new_run(
    before: dict[str, Any], after: dict[str, Any], is_new: bool
) -> None:
    """Removing one may change the choice, so that is a change."""
    data = {"train": [{"uri": "s3://bucket/train.jsonl"}]}
    old, new = ({**spec, "data": data | spec.get("data", {})} for spec in (before, after))
    status = make_status(run=1, spec_hash=runs.run_hash(make_job(**old).spec), resolved=RESOLVED)
    found = runs.current_run(make_job(**new).model_copy(update={"status": status}), ())
    assert found.is_new is is_new
