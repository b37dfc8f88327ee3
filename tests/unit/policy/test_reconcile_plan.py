"""The plan of a reconcile, as tables: facts -> actions in their order, Events, status, next reconcile."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import AttemptPlan, CheckpointStatus, FineTuneJob, ResolvedStatus, Status
from finetune_api.validation import parse_job
from finetune_operator.names import name_of
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.policy import in_force
from finetune_operator.policy.actions import (
    Action,
    CreateChildren,
    CreateEvent,
    DeleteJob,
    Requeue,
    RequeueReason,
    UpdateStatus,
)
from finetune_operator.policy.facts import Facts
from finetune_operator.policy.pending import evaluation_hash
from finetune_operator.policy.plan import Plan, plan_of, refused, rejection, unexplained_objects
from finetune_operator.settings import OperatorSettings
from observations import STAMP, make_pod, make_stage

NOW = datetime.fromisoformat(STAMP)
SETTINGS = OperatorSettings(progress_seconds=5.0)
PROGRESS = Requeue(5.0, RequeueReason.PROGRESS)
NEVER = Requeue()
BROKEN = (Violation("spec.training.microBatchSize", "must divide 16"),)


def make_facts(
    *children: ObservedAttempt,
    status: Status | None = None,
    orphans: tuple[str, ...] = (),
    after: float = 0.0,
    violations: tuple[Violation, ...] = (),
    settings: OperatorSettings = SETTINGS,
    **spec: Any,
) -> Facts:
    """Facts about the job `example`, `after` seconds after its children were created."""
    manifest = make_job("example", **spec)
    manifest["metadata"] |= {"uid": "u", "generation": 1}
    if status is not None:
        manifest["status"] = status.written()
    job = parse_job(manifest)
    if violations:
        job = FineTuneJob.model_construct(
            metadata=job.metadata, spec=in_force.spec_in_force(manifest["spec"], None), status=job.status
        )
    now = NOW + timedelta(seconds=after)
    return Facts(manifest, job, settings, now, Observed(children, orphans), violations=violations)


def recorded(*children: ObservedAttempt, **given: Any) -> Status:
    """Status of the job after a reconcile that has observed these children."""
    return plan_of(make_facts(*children, **given)).status


def outline(actions: tuple[Action, ...]) -> list[str]:
    """The actions in a form that fits into a table."""
    return [_outlined(action) for action in actions]


def _outlined(action: Action) -> str:
    match action:
        case CreateChildren(config):
            return f"create {name_of(config)}"
        case DeleteJob(name):
            return f"delete {name}"
        case CreateEvent(event):
            return f"Event {event.reason}"
        case UpdateStatus():
            return "update status"


PREPARED = make_stage(Stage.PREPARE, ended="Complete")
RUNNING = make_stage(pods=(make_pod(),))
SUCCEEDED = make_stage(ended="Complete")
CRASHED = make_stage(ended="Failed", pods=(make_pod(0, 70),))
CRASHED_TWICE = (CRASHED, make_stage(attempt=2, ended="Failed", pods=(make_pod(0, 137),)))
EVALUATED = make_stage(Stage.EVALUATE, ended="Complete")
DELETING = replace(RUNNING, deleting=True)
LOST = make_stage(lost=True, pods=(make_pod(due_at=STAMP, node="node-b"),))
SLOW = make_stage(pods=(make_pod(0), make_pod(1, phase="Pending")), expected_pods=2)
IDLE = make_stage(pods=(make_pod(0, phase="Pending"),))
COMPLETE = (PREPARED, SUCCEEDED, EVALUATED)

FEW = {"workers": {"nodes": 2, "minNodes": 1, "startTimeout": "10s"}}
HOUR = {"budget": {"deadline": "1h"}}
TTL = {"ttlSecondsAfterFinished": 60}


def case(
    name: str,
    facts: Facts,
    actions: list[str],
    requeue: Requeue = NEVER,
    phase: Phase | None = None,
) -> Any:
    return pytest.param(facts, actions, requeue, phase, id=name)


PLANS = [
    case(
        "first attempt",
        make_facts(),
        ["create example-r1-prepare-a1", "Event Preparing", "update status"],
        PROGRESS,
        Phase.PREPARING,
    ),
    case(
        "next stage",
        make_facts(PREPARED, status=recorded(replace(PREPARED, succeeded=False))),
        ["create example-r1-train-a1", "Event Training", "update status"],
        PROGRESS,
        Phase.TRAINING,
    ),
    case(
        "restart",
        make_facts(PREPARED, CRASHED, status=recorded(PREPARED, RUNNING)),
        ["create example-r1-train-a2", "Event AttemptFailed", "Event Restarting", "update status"],
        PROGRESS,
        Phase.RESTARTING,
    ),
    case(
        "back-off",
        make_facts(PREPARED, *CRASHED_TWICE, status=recorded(PREPARED, CRASHED, make_stage(attempt=2))),
        ["Event AttemptFailed", "update status"],
        Requeue(10.0),
        Phase.RESTARTING,
    ),
    case(
        "back-off until the deadline",
        make_facts(
            PREPARED,
            *CRASHED_TWICE,
            status=recorded(PREPARED, CRASHED, make_stage(attempt=2)),
            budget={"deadline": "4s"},
        ),
        ["Event AttemptFailed", "update status"],
        Requeue(4.0),
        Phase.RESTARTING,
    ),
    case(
        "running",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING)),
        [],
        PROGRESS,
        Phase.TRAINING,
    ),
    case(
        "running until the deadline",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), after=3598, **HOUR),
        [],
        Requeue(2.0, RequeueReason.PROGRESS),
        Phase.TRAINING,
    ),
    case(
        "pods are ending",
        make_facts(
            PREPARED, replace(RUNNING, pods=(make_pod(due_at=STAMP),), failing=True), status=recorded(PREPARED, RUNNING)
        ),
        [],
        Requeue(1.0, RequeueReason.PROGRESS),
        Phase.TRAINING,
    ),
    case(
        "over the deadline",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), after=3600, **HOUR),
        ["Event DeadlineExceeded", "delete example-r1-train-a1", "update status"],
        PROGRESS,
        Phase.SUSPENDING,
    ),
    case(
        "over the deadline, Job is being deleted",
        make_facts(
            PREPARED,
            DELETING,
            status=recorded(PREPARED, DELETING, status=recorded(PREPARED, RUNNING), after=3600, **HOUR),
            after=3600,
            **HOUR,
        ),
        [],
        Requeue(1.0, RequeueReason.PROGRESS),
        Phase.SUSPENDING,
    ),
    case(
        "over the deadline, pods of a deleted Job",
        make_facts(PREPARED, status=recorded(PREPARED, RUNNING), orphans=("example-r1-train-a1",), after=3600, **HOUR),
        ["update status"],
        Requeue(1.0, RequeueReason.PROGRESS),
        Phase.TRAINING,
    ),
    case(
        "suspended",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), suspend=True),
        ["Event Suspending", "delete example-r1-train-a1", "update status"],
        PROGRESS,
        Phase.SUSPENDING,
    ),
    case(
        "suspended, Job is being deleted",
        make_facts(PREPARED, DELETING, status=recorded(PREPARED, DELETING, suspend=True), suspend=True),
        [],
        Requeue(1.0, RequeueReason.PROGRESS),
        Phase.SUSPENDING,
    ),
    case(
        "suspended, no pod is running",
        make_facts(PREPARED, status=recorded(PREPARED, DELETING, suspend=True), suspend=True),
        ["Event Suspended", "update status"],
        phase=Phase.SUSPENDED,
    ),
    case(
        "another run",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), training={"learningRate": 1.0}),
        ["Event SpecChanged", "delete example-r1-train-a1", "update status"],
        PROGRESS,
        Phase.SUSPENDING,
    ),
    case(
        "workers are missing",
        make_facts(PREPARED, SLOW, status=recorded(PREPARED, SLOW, **FEW), after=10, **FEW),
        ["Event FewerWorkers", "update status"],
        Requeue(0.0, RequeueReason.PROGRESS),
        Phase.RESTARTING,
    ),
    case(
        "workers are missing, plan is recorded",
        make_facts(
            PREPARED, SLOW, status=recorded(PREPARED, SLOW, **FEW).with_run(next_plan=AttemptPlan(nodes=1)), **FEW
        ),
        ["Event FewerWorkers", "delete example-r1-train-a1", "update status"],
        PROGRESS,
        Phase.RESTARTING,
    ),
    case(
        "pods of a deleted Job",
        make_facts(PREPARED, status=recorded(PREPARED, RUNNING), orphans=("example-r1-train-a1",)),
        ["update status"],
        Requeue(1.0, RequeueReason.PROGRESS),
        Phase.TRAINING,
    ),
    case(
        "lost node",
        make_facts(PREPARED, LOST, status=recorded(PREPARED, RUNNING)),
        [
            "delete example-r1-train-a1",
            "create example-r1-train-a2",
            "Event AttemptFailed",
            "Event Restarting",
            "update status",
        ],
        PROGRESS,
        Phase.RESTARTING,
    ),
    case(
        "success",
        make_facts(*COMPLETE, status=recorded(PREPARED, SUCCEEDED, make_stage(Stage.EVALUATE))),
        ["Event Succeeded", "update status"],
        phase=Phase.SUCCEEDED,
    ),
    case(
        "success with a time-to-live",
        make_facts(*COMPLETE, status=recorded(PREPARED, SUCCEEDED, make_stage(Stage.EVALUATE)), **TTL),
        ["Event Succeeded", "update status"],
        Requeue(60.0),
        Phase.SUCCEEDED,
    ),
    case(
        "failure",
        make_facts(PREPARED, CRASHED, status=recorded(PREPARED, RUNNING), restart={"maxRestarts": 0}),
        ["Event AttemptFailed", "Event RestartsExhausted", "update status"],
        phase=Phase.FAILED,
    ),
    case(
        "within the time-to-live",
        make_facts(*COMPLETE, status=recorded(*COMPLETE, **TTL), after=20, **TTL),
        [],
        Requeue(40.0),
        Phase.SUCCEEDED,
    ),
    case(
        "within the time-to-live, past the deadline",
        make_facts(*COMPLETE, status=recorded(*COMPLETE, **TTL), after=20, budget={"deadline": "10s"}, **TTL),
        [],
        Requeue(40.0),
        Phase.SUCCEEDED,
    ),
    case(
        "after the time-to-live",
        make_facts(*COMPLETE, status=recorded(*COMPLETE, **TTL), after=60, **TTL),
        ["delete example-r1-prepare-a1", "delete example-r1-train-a1", "delete example-r1-evaluate-a1"],
        phase=Phase.SUCCEEDED,
    ),
    case(
        "children were removed",
        make_facts(status=recorded(*COMPLETE), after=60, **TTL),
        ["update status"],
        phase=Phase.SUCCEEDED,
    ),
    case("children are kept", make_facts(*COMPLETE, status=recorded(*COMPLETE), after=60), [], phase=Phase.SUCCEEDED),
    case(
        "failed under an operator that compared other fields",
        make_facts(
            PREPARED,
            CRASHED,
            status=recorded(PREPARED, CRASHED, restart={"maxRestarts": 0}).with_run(failed_spec_hash=None),
            restart={"maxRestarts": 0},
        ),
        ["update status"],
        phase=Phase.FAILED,
    ),
    case(
        "invalid while an attempt runs",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), violations=BROKEN),
        ["Event InvalidSpec", "update status"],
        PROGRESS,
        Phase.TRAINING,
    ),
    case(
        "invalid and suspended",
        make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), violations=BROKEN, suspend=True),
        ["Event Suspending", "Event InvalidSpec", "delete example-r1-train-a1", "update status"],
        PROGRESS,
        Phase.SUSPENDING,
    ),
    case(
        "invalid when an attempt fails",
        make_facts(PREPARED, CRASHED, status=recorded(PREPARED, RUNNING), violations=BROKEN),
        ["Event AttemptFailed", "Event InvalidSpec", "update status"],
        phase=Phase.INVALID,
    ),
    case(
        "invalid before the first attempt",
        make_facts(violations=BROKEN),
        ["Event InvalidSpec", "update status"],
        phase=Phase.INVALID,
    ),
    case(
        "invalid with a plan for fewer workers",
        make_facts(
            PREPARED,
            SLOW,
            status=recorded(PREPARED, SLOW, **FEW).with_run(next_plan=AttemptPlan(nodes=1)),
            violations=BROKEN,
            **FEW,
        ),
        ["Event InvalidSpec", "update status"],
        PROGRESS,
        Phase.TRAINING,
    ),
]


@pytest.mark.parametrize(("facts", "actions", "requeue", "phase"), PLANS)
def test_facts_determine_the_actions_and_the_next_reconcile(
    facts: Facts, actions: list[str], requeue: Requeue, phase: Phase | None
) -> None:
    plan = plan_of(facts)
    assert (outline(plan.actions), plan.requeue, plan.status.phase) == (actions, requeue, phase)
    assert [f"Event {event.reason}" for event in plan.events] == [one for one in actions if one.startswith("Event")]
    assert plan.before == facts.job.status


def written(facts: Facts, plan: Plan) -> Facts:
    """The facts after the plan was executed, if the cluster has not reacted yet."""
    manifest = {**facts.manifest, "status": plan.status.written()}
    return replace(facts, manifest=manifest, job=facts.job.model_copy(update={"status": plan.status}))


CHANGED = {
    "first attempt": lambda facts: replace(facts, observed=Observed((make_stage(Stage.PREPARE),))),
    "next stage": lambda facts: replace(facts, observed=Observed((PREPARED, RUNNING))),
    "restart": lambda facts: replace(facts, observed=Observed((PREPARED, CRASHED, make_stage(attempt=2)))),
    "lost node": lambda facts: replace(
        facts, observed=Observed((PREPARED, replace(LOST, deleting=True), make_stage(attempt=2)))
    ),
}
"""What the cluster shows after children were created."""


@pytest.mark.parametrize(
    ("facts", "reaction"), [pytest.param(one.values[0], CHANGED.get(str(one.id)), id=one.id) for one in PLANS]
)
def test_a_second_reconcile_reports_nothing_again(facts: Facts, reaction: Any) -> None:
    after = written(facts, plan_of(facts))
    second = plan_of(after if reaction is None else reaction(after))
    assert [one for one in outline(second.actions) if not one.startswith("delete")] == []


def test_a_run_of_an_invalid_object_is_complete_when_its_last_stage_succeeds() -> None:
    """Its evaluation fields may be unknown; they are compared when the object is corrected."""
    evaluating = make_stage(Stage.EVALUATE, evaluation_hash=evaluation_hash(make_facts().spec))
    children = (PREPARED, SUCCEEDED, replace(evaluating, succeeded=True))
    plan = plan_of(make_facts(*children, status=recorded(PREPARED, SUCCEEDED, evaluating), violations=BROKEN))
    assert outline(plan.actions) == ["Event Succeeded", "Event InvalidSpec", "update status"]
    changed = plan_of(make_facts(*children, status=plan.status, evaluation={"maxNewTokens": 7}))
    assert outline(changed.actions)[0] == "create example-r1-evaluate-a2"


def test_an_attempt_gets_its_configuration_from_the_facts() -> None:
    resolved = ResolvedStatus(task="SequenceClassification", parameters=7, test_tokens=9, dtype="Float32")
    checkpoint = CheckpointStatus(uri="s3://b/c", step=3, time=STAMP, save_seconds=100.0)
    before = recorded(PREPARED, RUNNING, **FEW).with_run(resolved=resolved, last_checkpoint=checkpoint)
    training = plan_of(make_facts(PREPARED, CRASHED, status=before, **FEW))
    (created,) = [action for action in training.actions if isinstance(action, CreateChildren)]
    attempt = training.status.run.attempts[-1]
    assert (created.config.stage, created.config.attempt, created.config.plan) == (Stage.TRAIN, 2, attempt.plan)
    assert (created.grace_seconds, created.needs.parameters) == (220, 7), "two saves of 100 s are possible"
    assert created.config.attempts == ()
    assert training.status.run.resolved is not None
    assert training.status.run.resolved.micro_batch_size == created.config.batch.micro_size

    evaluating = plan_of(make_facts(PREPARED, SUCCEEDED, status=before, **FEW))
    (created,) = [action for action in evaluating.actions if isinstance(action, CreateChildren)]
    assert (created.config.stage, created.config.plan, created.grace_seconds) == (Stage.EVALUATE, None, None)
    assert [entry.stage for entry in created.config.attempts] == [Stage.TRAIN]


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (make_facts(PREPARED, IDLE, after=20), ("pod-0",)),
        (make_facts(PREPARED, IDLE, after=19), ()),
        (make_facts(PREPARED, make_stage(), after=20), ("example-r1-train-a1",)),
        (make_facts(PREPARED, RUNNING, after=20), ()),
        (make_facts(PREPARED, IDLE, after=20, suspend=True), ()),
        (make_facts(PREPARED, IDLE, status=recorded(PREPARED, RUNNING), after=20, violations=BROKEN), ("pod-0",)),
        (make_facts(PREPARED, IDLE, after=20, budget={"deadline": "20s"}, status=recorded(PREPARED, RUNNING)), ()),
        (make_facts(PREPARED, SLOW, after=20, status=recorded(PREPARED, SLOW, **FEW), **FEW), ()),
        (make_facts(after=20), ()),
    ],
    ids=["late", "early", "not created", "running", "suspended", "invalid", "over the deadline", "fewer", "none"],
)
def test_events_are_read_only_for_late_pods_of_an_attempt_that_continues(facts: Facts, names: tuple[str, ...]) -> None:
    assert unexplained_objects(facts) == names


@pytest.mark.parametrize(
    ("after", "waiting_seconds", "spec", "seconds"),
    [(40, 0.0, {}, 10.0), (3600, 0.0, {}, 30.0), (40, 25.0, {}, 25.0), (280, 300.0, FEW | HOUR, 300.0)],
    ids=["a quarter of the time", "at most half a minute", "many jobs wait", "after the start timeout"],
)
def test_a_job_whose_pods_wait_is_reconciled_less_and_less_often(
    after: float, waiting_seconds: float, spec: dict[str, Any], seconds: float
) -> None:
    settings = replace(SETTINGS, waiting_seconds=waiting_seconds)
    facts = make_facts(PREPARED, IDLE, status=recorded(PREPARED, RUNNING), after=after, settings=settings, **spec)
    plan = plan_of(replace(facts, warnings=({"involvedObject": {"name": "pod-0"}, "message": "no such secret"},)))
    assert (plan.status.phase, plan.requeue) == (Phase.PENDING, Requeue(seconds, RequeueReason.WAITING))
    assert [event.reason for event in plan.events] == ["WaitingForPods"]
    assert "pod-0: no such secret" in plan.events[0].message


def test_a_waiting_job_is_reconciled_at_its_start_timeout() -> None:
    spec = {"workers": {"nodes": 2, "minNodes": 1, "startTimeout": "45s"}}
    plan = plan_of(make_facts(PREPARED, SLOW, status=recorded(PREPARED, SLOW, **spec), after=40, **spec))
    assert plan.requeue == Requeue(5.0, RequeueReason.WAITING)


@pytest.mark.parametrize(("waiting_seconds", "seconds"), [(0.0, 30.0), (45.0, 45.0)], ids=["alone", "many jobs wait"])
def test_a_refused_action_is_reported_with_what_has_ended_and_without_the_step(
    waiting_seconds: float, seconds: float
) -> None:
    settings = replace(SETTINGS, waiting_seconds=waiting_seconds)
    facts = make_facts(PREPARED, CRASHED, status=recorded(PREPARED, RUNNING), settings=settings)
    plan = refused(facts, plan_of(facts), Reason.CANNOT_CREATE, "exceeded quota")
    assert outline(plan.actions) == ["Event AttemptFailed", "Event CannotCreate", "update status"]
    assert plan.requeue == Requeue(seconds, RequeueReason.WAITING)
    assert [entry.number for entry in plan.status.run.attempts] == [1, 1], "the second attempt was not started"
    assert (plan.status.phase, plan.status.run.attempts[-1].reason) == (Phase.PENDING, "InternalError")
    again = written(facts, plan)
    assert refused(again, plan_of(again), Reason.CANNOT_CREATE, "exceeded quota").actions == ()


def test_a_refused_removal_of_children_leaves_the_phase_of_an_ended_run() -> None:
    evaluating = make_stage(Stage.EVALUATE, evaluation_hash=evaluation_hash(make_facts(**TTL).spec))
    children = (PREPARED, SUCCEEDED, replace(evaluating, succeeded=True))
    before = recorded(PREPARED, SUCCEEDED, evaluating, **TTL)
    ended = plan_of(make_facts(*children, status=before, **TTL)).status
    facts = make_facts(*children, status=ended, after=3600, **TTL)
    plan = plan_of(facts)
    assert [one for one in outline(plan.actions) if one.startswith("delete")]
    status = refused(facts, plan, Reason.CANNOT_CREATE, "forbidden").status
    conditions = {entry.type: (entry.status, entry.reason) for entry in status.conditions}
    assert status.phase is Phase.SUCCEEDED
    assert (conditions["Ready"], conditions["Complete"]) == (("True", "Succeeded"), ("True", "Succeeded"))
    assert conditions["Stalled"] == ("True", "CannotCreate")


def test_a_refused_action_for_an_invalid_object_keeps_its_violations() -> None:
    facts = make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING), violations=BROKEN, suspend=True)
    status = refused(facts, plan_of(facts), Reason.CANNOT_CREATE, "forbidden").status
    accepted = next(entry for entry in status.conditions if entry.type == "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "InvalidSpec")
    assert str(BROKEN[0]) in accepted.message


def test_a_status_that_an_earlier_version_wrote_is_replaced_without_an_event() -> None:
    facts = make_facts(PREPARED, RUNNING, status=recorded(PREPARED, RUNNING))
    content = facts.manifest["status"]
    run = {name: value for name, value in content["run"].items() if name != "number"}
    flat = {**content, **run, "run": 1}
    manifest = {**facts.manifest, "status": flat}
    plan = plan_of(replace(facts, manifest=manifest, job=parse_job(manifest)))
    assert outline(plan.actions) == ["update status"]
    assert plan.actions == (UpdateStatus(content),)


def test_a_status_of_a_newer_operator_is_reported_once_and_kept() -> None:
    manifest = make_job("example")
    manifest["status"] = {"phase": "Teleporting", "run": {"number": 3}}
    plan = rejection(manifest, (), STAMP)
    assert outline(plan.actions) == ["update status"]
    (update,) = plan.actions
    assert isinstance(update, UpdateStatus)
    assert update.content["phase"] == "Teleporting"
    assert "written by a newer operator" in str(update.content["conditions"])
    assert rejection({**manifest, "status": update.content}, (), STAMP).actions == ()
