"""Jobs in a queue of Kueue, as tables: (children, time) -> phase and reason, actions, attempts, deadline."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.v1alpha1 import Outcome, Status
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.pod_defaults import parse_defaults
from finetune_operator.policy.actions import CreateChildren, DeleteJob
from finetune_operator.policy.facts import Facts
from finetune_operator.policy.plan import Plan, plan_of, queued_job
from finetune_operator.render import render_stage
from finetune_operator.settings import OperatorSettings, PodAdditions
from observations import STAMP, make_pod, make_stage

NOW = datetime.fromisoformat(STAMP)
PREPARED = make_stage(Stage.PREPARE, ended="Complete")
QUEUED = make_stage(queue="team", suspended=True)
ADMITTED_AT = "2026-01-01T13:00:00Z"
RUNNING = make_stage(queue="team", started_at=ADMITTED_AT, pods=(make_pod(),))
SAVING = make_stage(queue="team", suspended=True, pods=(make_pod(due_at="2026-01-01T13:02:00Z"),))
STARTING = make_stage(queue="team", started_at=ADMITTED_AT, pods=(make_pod(phase="Pending"),))
STOPPED = make_stage(queue="team", suspended=True, pods=(make_pod(0, 75),))
FAILED = make_stage(queue="team", suspended=True, ended="Failed", pods=(make_pod(0, 75),))
FAILED_IN_TIME = make_stage(queue="team", suspended=True, ended="Failed", pods=(make_pod(0, 137),))
AGAIN_AT = "2026-01-01T13:00:02Z"
READMITTED = replace(RUNNING, started_at=AGAIN_AT)
FENCED = make_stage(queue="team", started_at=AGAIN_AT, ended="Failed", pods=(make_pod(0, 83),))
PERMANENT = make_stage(queue="team", suspended=True, ended="Failed", pods=(make_pod(0, 65),))
HOUR = 3600.0


def plan(child: ObservedAttempt | None, status: Status | None = None, after: float = 0.0, **spec: Any) -> Plan:
    return plan_of(facts(child, status, after, **spec))


def facts(child: ObservedAttempt | None, status: Status | None = None, after: float = 0.0, **spec: Any) -> Facts:
    manifest = make_job("example", **{"workers": {"queue": "team"}, **spec})
    manifest["metadata"] |= {"uid": "u", "generation": 1}
    if status is not None:
        manifest["status"] = status.written()
    children = (PREPARED,) if child is None else (PREPARED, child)
    job = parse_job(manifest)
    return Facts(manifest, job, OperatorSettings(), NOW + timedelta(seconds=after), Observed(children))


def ready(status: Status) -> tuple[Phase, Reason]:
    (entry,) = [one for one in status.conditions if one.type is ConditionType.READY]
    assert entry.status == "False" or status.phase is Phase.TRAINING
    return status.phase, entry.reason


def actions(found: Plan) -> list[str]:
    created = [f"create {one.config.attempt}" for one in found.actions if isinstance(one, CreateChildren)]
    return created + [f"delete {one.name}" for one in found.actions if isinstance(one, DeleteJob)]


TRAINING_STATUS = plan(RUNNING, after=HOUR).status
STARTING_STATUS = plan(STARTING, after=HOUR).status
REQUEUED = (Phase.RESTARTING, Reason.REQUEUED)
DELETE = ["delete example-r1-train-a1"]


@pytest.mark.parametrize(
    ("child", "before", "expected", "changes"),
    [
        pytest.param(None, None, (Phase.PENDING, Reason.QUEUED), ["create 1"], id="created"),
        pytest.param(QUEUED, None, (Phase.PENDING, Reason.QUEUED), [], id="waits"),
        pytest.param(RUNNING, None, (Phase.TRAINING, Reason.TRAINING), [], id="admitted"),
        pytest.param(SAVING, TRAINING_STATUS, REQUEUED, DELETE, id="evicted, and saving"),
        pytest.param(STOPPED, TRAINING_STATUS, REQUEUED, DELETE, id="evicted, and stopped"),
        pytest.param(QUEUED, TRAINING_STATUS, REQUEUED, DELETE, id="evicted, and the pods are gone"),
        pytest.param(SAVING, None, REQUEUED, DELETE, id="evicted before it was seen running"),
        pytest.param(
            QUEUED, STARTING_STATUS, (Phase.PENDING, Reason.QUEUED), [], id="evicted before a pod was running"
        ),
        pytest.param(replace(SAVING, deleting=True), TRAINING_STATUS, REQUEUED, [], id="being deleted"),
        pytest.param(FAILED, TRAINING_STATUS, (Phase.PENDING, Reason.QUEUED), ["create 2"], id="failed by the stop"),
        pytest.param(FAILED_IN_TIME, TRAINING_STATUS, (Phase.PENDING, Reason.QUEUED), ["create 2"], id="killed"),
        pytest.param(READMITTED, TRAINING_STATUS, REQUEUED, DELETE, id="evicted and admitted again"),
        pytest.param(FENCED, TRAINING_STATUS, (Phase.PENDING, Reason.QUEUED), ["create 2"], id="its claim was refused"),
        pytest.param(READMITTED, None, (Phase.TRAINING, Reason.TRAINING), [], id="evicted before it was in status"),
        pytest.param(
            replace(READMITTED, pods=(make_pod(),)),
            STARTING_STATUS,
            (Phase.TRAINING, Reason.TRAINING),
            [],
            id="evicted before a pod was seen running",
        ),
        pytest.param(
            replace(QUEUED, pods=(make_pod(phase="Pending"),)),
            None,
            (Phase.TRAINING, Reason.TRAINING),
            [],
            id="admitted between the two lists",
        ),
    ],
)
def test_a_job_in_a_queue_waits_and_an_eviction_is_followed_by_the_next_attempt(
    child: ObservedAttempt | None, before: Status | None, expected: tuple[Phase, Reason], changes: list[str]
) -> None:
    found = plan(child, before, after=HOUR + 1)
    assert (ready(found.status), actions(found)) == (expected, changes)
    assert (found.status.run.restarts, found.status.run.disruptions) == (0, 0)
    assert found.status.run.failure is None


def test_a_permanent_failure_is_one_also_if_the_job_is_suspended() -> None:
    assert plan(PERMANENT, TRAINING_STATUS).status.phase is Phase.FAILED


def test_the_deadline_stands_still_in_the_queue() -> None:
    spec = {"budget": {"deadline": "1h"}}
    waiting = plan(QUEUED, after=60.0, **spec).status
    for days in (1, 30):
        found = plan(QUEUED, waiting, after=days * 86400.0, **spec)
        assert found.status.phase is Phase.PENDING
        assert found.requeue.seconds == 30.0
    admitted = replace(RUNNING, started_at="2026-01-31T12:00:00Z")
    running = plan(admitted, waiting, after=30 * 86400.0, **spec).status
    assert running.phase is Phase.TRAINING
    assert plan(admitted, running, after=30 * 86400.0 + HOUR - 61, **spec).status.phase is Phase.TRAINING
    late = plan(admitted, running, after=30 * 86400.0 + HOUR + 1, **spec).status
    assert ready(late) == (Phase.SUSPENDING, Reason.DEADLINE_EXCEEDED)


def test_a_deadline_that_is_near_causes_no_more_reconciles_in_the_queue() -> None:
    spec = {"budget": {"deadline": "1h"}}
    started = plan(None, **spec).status
    waiting = plan(QUEUED, started, after=HOUR - 1, **spec)
    assert waiting.requeue.seconds == 30.0
    assert plan(QUEUED, waiting.status, after=2 * HOUR, **spec).requeue.seconds == 30.0


def test_the_time_in_the_queue_costs_nothing() -> None:
    training = plan(RUNNING, after=HOUR).status
    assert training.run.attempts[-1].admitted_time == ADMITTED_AT
    ended = plan(None, training, after=HOUR + 100).status
    (attempt,) = [one for one in ended.run.attempts if one.stage is Stage.TRAIN and one.end_time]
    assert (attempt.outcome, ended.run.cost and ended.run.cost.pod_seconds) == (Outcome.STOPPED, 100)
    waiting = plan(QUEUED).status
    never = plan(None, waiting, after=HOUR).status
    assert (never.run.attempts[-2].outcome, never.run.cost and never.run.cost.pod_seconds) == (Outcome.STOPPED, 0)


def test_an_attempt_that_waits_again_costs_nothing_until_its_next_admission() -> None:
    waits_again = plan(QUEUED, STARTING_STATUS, after=2 * HOUR).status
    assert waits_again.run.attempts[-1].admitted_time is None
    again = plan(replace(RUNNING, started_at="2026-01-01T15:00:00Z"), waits_again, after=3 * HOUR).status
    ended = plan(None, again, after=3 * HOUR + 100).status
    assert (ended.run.cost and ended.run.cost.pod_seconds) == 100


def test_a_queue_that_kueue_assigns_itself_is_recorded() -> None:
    status = plan(RUNNING, workers={}).status
    attempt = status.run.attempts[-1]
    assert (attempt.queue, attempt.admitted_time) == ("team", ADMITTED_AT)


def test_a_job_that_something_else_has_suspended_does_not_stop_the_deadline() -> None:
    spec: dict[str, Any] = {"budget": {"deadline": "1h"}, "workers": {}}
    suspended = replace(QUEUED, queue="")
    waiting = plan(suspended, after=60.0, **spec).status
    assert waiting.run.suspended_since is None
    assert ready(plan(suspended, waiting, after=HOUR + 60, **spec).status) == (
        Phase.SUSPENDING,
        Reason.DEADLINE_EXCEEDED,
    )


def test_a_user_can_suspend_a_job_that_waits_and_one_that_was_evicted() -> None:
    for child in (QUEUED, SAVING):
        found = plan(child, suspend=True)
        assert (found.status.phase, actions(found)) == (Phase.SUSPENDING, DELETE)


@pytest.mark.parametrize(
    ("child", "uid"), [(None, ""), (QUEUED, QUEUED.uid), (RUNNING, ""), (SAVING, ""), (replace(QUEUED, queue=""), "")]
)
def test_the_reason_of_the_queue_is_read_only_while_a_job_waits(child: ObservedAttempt | None, uid: str) -> None:
    assert queued_job(facts(child)) == uid


@pytest.mark.parametrize(
    ("workers", "default", "has_queues", "queue"),
    [
        ({}, {}, True, None),
        ({"queue": "team"}, {}, True, "team"),
        ({}, {"queue": "shared"}, True, "shared"),
        ({"queue": "team"}, {"queue": "shared"}, True, "team"),
        ({"queue": "team"}, {}, False, None),
    ],
    ids=["none", "of the spec", "of the operator", "both", "a local run"],
)
def test_the_job_of_a_training_is_created_suspended_with_the_label_of_its_queue(
    workers: dict[str, Any], default: dict[str, Any], has_queues: bool, queue: str | None
) -> None:
    additions = PodAdditions(defaults=parse_defaults({"workers": default}))
    settings = OperatorSettings(additions=additions, has_queues=has_queues)
    manifest = make_job("example", workers=workers)
    manifest["metadata"]["uid"] = "u"
    started = plan_of(Facts(manifest, parse_job(manifest), settings, NOW, Observed((PREPARED,))))
    (created,) = [one for one in started.actions if isinstance(one, CreateChildren)]
    job = render_stage(created.config, settings)[-1]
    assert (job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name"), job["spec"].get("suspend")) == (
        queue,
        True if queue else None,
    )
    assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]
    prepare = render_stage(created.config.model_copy(update={"stage": Stage.PREPARE, "plan": None}), settings)[-1]
    assert "suspend" not in prepare["spec"]
