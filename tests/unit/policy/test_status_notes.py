"""Notes in status besides the phase: dropped fields, pending changes, saves that do not fit the grace period."""

import json
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import LAST_APPLIED, ConditionType, Reason, Stage
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import CheckpointStatus, Condition, ProgressStatus, Status
from finetune_api.validation import dropped_fields, parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import grace, pending
from finetune_operator.policy import status as status_policy
from finetune_operator.policy.events import job_events
from finetune_operator.policy.status import StatusNotes
from finetune_operator.policy.steps import Finish, StaySuspended, Stop, Watch
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_stage
from finetune_operator.settings import GraceLimits, OperatorSettings
from statuses import make_status

STAMP = "2026-01-01T12:00:00Z"
WATCH = Watch(Stage.TRAIN, 1)


def saved(seconds: float | None, step_seconds: float | None = None) -> Status:
    """Status of a job whose last save took this long."""
    checkpoint = CheckpointStatus(uri="s3://b/c.json", step=4, time=STAMP, save_seconds=seconds)
    return make_status(run=1, last_checkpoint=checkpoint, progress=ProgressStatus(step_seconds=step_seconds))


def running(spec: dict[str, Any] | None = None, grace_seconds: int = 120) -> Any:
    """The observed training of a job, from the Job in a cluster."""
    job = parse_job(make_job("example", **(spec or {})))
    config = stage_config(job, 1, Stage.TRAIN, 1, OperatorSettings().storage)
    *_, manifest = render_stage(config, OperatorSettings(), grace_seconds=grace_seconds)
    manifest["metadata"]["uid"] = "of the Job"
    (stage,) = Observed.from_manifests(job.metadata.uid, [manifest], []).attempts
    return stage


@pytest.mark.parametrize(
    ("seconds", "step_seconds", "expected"),
    [
        (None, None, 120),
        (2.2, 0.5, 120),
        (100.0, None, 220),
        (100.0, 30.0, 280),
        (5000.0, 1.0, 3600),
    ],
)
def test_the_grace_period_is_twice_a_save_and_a_step(
    seconds: float | None, step_seconds: float | None, expected: int
) -> None:
    assert grace.grace_seconds(saved(seconds, step_seconds), GraceLimits(120, 3600)) == expected


@pytest.mark.parametrize(
    ("seconds", "given", "safe", "words"),
    [
        (2.2, 120, True, "about 20 s in total, and the grace period of the pods is 120 s"),
        (100.0, 120, False, "the grace period of the pods of attempt 1 is 120 s"),
        (100.0, 120, False, "that of the next attempt is 220 s"),
        (100.0, 220, True, "the grace period of the pods is 220 s"),
        (
            5000.0,
            3600,
            False,
            "allows at most 3600 s; raise pods.terminationGrace.maximumSeconds of the chart",
        ),
    ],
)
def test_a_save_that_does_not_fit_is_reported(seconds: float, given: int, safe: bool, words: str) -> None:
    safety = grace.stop_safety(saved(seconds), running(grace_seconds=given), GraceLimits(120, 3600))
    assert safety is not None
    assert safety.is_safe is safe
    assert words in safety.message


def test_nothing_is_reported_for_a_save_that_was_never_measured() -> None:
    for status in (Status(), saved(None)):
        assert grace.stop_safety(status, running(), GraceLimits()) is None


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({}, False),
        ({"workers": {"nodes": 4}}, True),
        ({"checkpoint": {"everySteps": 7}}, True),
        ({"restart": {"maxRestarts": 9}}, False),
        ({"suspend": True}, False),
        ({"training": {"learningRate": 0.1}}, False),
        ({"training": {"microBatchSize": 2}}, True),
        ({"deepspeed": {"zeroStage": 3}}, True),
    ],
    ids=["nothing", "workers", "checkpoint", "restart", "suspend", "a new run", "micro-batch", "ZeRO stage"],
)
def test_a_change_that_waits_for_the_next_attempt_is_reported(change: dict[str, Any], waits: bool) -> None:
    before = {"workers": {"nodes": 2}}
    changed = parse_job(make_job("example", **{**before, **change})).spec
    reported = pending.pending_change(changed, running(before))
    assert bool(reported) is waits
    assert not waits or "it takes effect with the next attempt" in reported


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, []),
        ({"workers": {"node": 2}}, ["spec.workers.node: unknown field; did you mean nodes?"]),
        (
            {"trainning": {"epochs": 3}, "data": {"train": [{"url": "s3://b/x"}]}},
            [
                "spec.data.train[0].url: unknown field; did you mean uri?",
                "spec.trainning: unknown field; did you mean training?",
            ],
        ),
    ],
)
def test_fields_that_the_api_server_dropped_are_found_in_kubectls_annotation(
    spec: dict[str, Any], expected: list[str]
) -> None:
    job = make_job("example")
    note = {**job, "spec": {**job["spec"], **spec}}
    job["metadata"]["annotations"] = {LAST_APPLIED: json.dumps(note)}
    assert sorted(map(str, dropped_fields(job))) == expected


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"spec": 3}', "null"])
def test_an_unreadable_annotation_reports_nothing(note: str | None) -> None:
    job = make_job("example")
    job["metadata"]["annotations"] = {} if note is None else {LAST_APPLIED: note}
    assert dropped_fields(job) == ()


def status_after(before: Status, notes: StatusNotes, decision: Any = WATCH) -> Status:
    return status_policy.status_after(before, decision, generation=2, now=STAMP, notes=notes)


def condition(status: Status, kind: ConditionType) -> Condition | None:
    return next((entry for entry in status.conditions if entry.type is kind), None)


TOO_SLOW = StatusNotes(grace=grace.StopSafety(is_safe=False, message="slow"))
LATE = StatusNotes(late="a crash would now lose all after step 20")
PENDING = StatusNotes(pending="changed")
DROPPED = StatusNotes(
    unknown_fields=dropped_fields(
        {
            **make_job("example"),
            "metadata": {"name": "example", "annotations": {LAST_APPLIED: '{"spec": {"trainning": 1}}'}},
        }
    )
)


@pytest.mark.parametrize(
    ("notes", "kind", "value", "reason"),
    [
        (TOO_SLOW, ConditionType.SAFE_TO_STOP, "False", Reason.SAVE_TOO_SLOW),
        (LATE, ConditionType.CHECKPOINT_STALE, "True", Reason.CHECKPOINT_LATE),
        (PENDING, ConditionType.RECONCILING, "True", Reason.NEXT_ATTEMPT),
        (DROPPED, ConditionType.ACCEPTED, "True", Reason.UNKNOWN_FIELDS),
    ],
)
def test_a_note_is_a_condition_and_reported_once(
    notes: StatusNotes, kind: ConditionType, value: str, reason: Reason
) -> None:
    plain = status_after(make_status(run=1), StatusNotes())
    reported = status_after(plain, notes)
    found = condition(reported, kind)
    assert found is not None
    assert (found.status, found.reason) == (value, reason)
    assert [event.reason for event in job_events(plain, reported)] == [reason]
    assert job_events(reported, status_after(reported, notes)) == ()
    assert reason not in {entry.reason for entry in status_after(reported, StatusNotes()).conditions}


@pytest.mark.parametrize(
    ("notes", "kind"), [(TOO_SLOW, ConditionType.SAFE_TO_STOP), (LATE, ConditionType.CHECKPOINT_STALE)]
)
def test_a_finished_run_has_no_notes_about_stops_or_crashes(notes: StatusNotes, kind: ConditionType) -> None:
    over = status_after(status_after(make_status(run=1), notes), StatusNotes(), Finish(True, Reason.SUCCEEDED, "done"))
    assert condition(over, kind) is None


def test_a_checkpoint_that_is_in_time_is_reported_as_such() -> None:
    reported = condition(status_after(make_status(run=1), StatusNotes(late="")), ConditionType.CHECKPOINT_STALE)
    assert reported is not None
    assert (reported.status, reported.reason) == ("False", Reason.CHECKPOINT_IN_TIME)


@pytest.mark.parametrize(
    "step",
    [WATCH, Stop(()), StaySuspended(), Finish(True, Reason.SUCCEEDED, "done")],
    ids=["trains", "stops", "suspended", "succeeds"],
)
def test_an_invalid_spec_is_stalled_whatever_its_run_does(step: Any) -> None:
    """kstatus reports Failed if Stalled is True, unless Reconciling is True too and comes first."""
    notes = StatusNotes(violations=(Violation("spec.training", "must be an object"),))
    reported = status_after(make_status(run=1), notes, step)
    reconciling, stalled = (condition(reported, kind) for kind in (ConditionType.RECONCILING, ConditionType.STALLED))
    assert reconciling is not None
    assert stalled is not None
    assert (reconciling.status, stalled.status, stalled.reason) == ("False", "True", Reason.INVALID_SPEC)
    assert "spec.training must be an object" in stalled.message
    corrected = condition(status_after(reported, StatusNotes(), step), ConditionType.STALLED)
    assert corrected is not None
    assert corrected.status == "False"
