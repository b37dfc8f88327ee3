"""Polls of the source files: what starts one, and what its result changes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.progress import PollResult, TerminationMessage
from finetune_api.v1alpha1 import ResolvedStatus, Status
from finetune_api.validation import InvalidJobError, parse_job
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.policy import poll
from finetune_operator.policy.actions import CreateChildren, DeleteJob, UpdateStatus
from finetune_operator.policy.facts import Facts
from finetune_operator.policy.plan import Plan, plan_of
from finetune_operator.policy.runs import run_hash
from finetune_operator.settings import OperatorSettings
from observations import make_pod, make_stage

POLLED = {"data": {"poll": "1h"}}
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
COMPLETE = tuple(make_stage(stage, ended="Complete") for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE))


def look(
    status: Status, minutes: float, *polls: ObservedAttempt, others: tuple[ObservedAttempt, ...] = (), **spec: Any
) -> Plan:
    """Reconcile. `others` are children of another run."""
    job = parse_job({**make_job("example", **{**POLLED, **spec}), "status": status.written()})
    manifest = {"metadata": {"name": "example"}, "spec": {}}
    now = START + timedelta(minutes=minutes)
    return plan_of(Facts(manifest, job, OperatorSettings(), now, Observed((*COMPLETE, *others), polls=polls)))


def complete(digest: str = "first") -> Status:
    """The status of a job that has ended at minute 0."""
    status = look(look(Status(), 0).status, 0).status
    assert status.terminal_condition is not None
    return look(status.with_run(resolved=ResolvedStatus(source_digest=digest)), 0).status


def poll_job(digest: str | None, *, run: int = 1, attempt: int = 1, **fields: Any) -> ObservedAttempt:
    """The Job of a poll; `digest` None: it is running, empty: it has failed."""
    if digest is None:
        return replace(make_stage(Stage.POLL, run=run, attempt=attempt), **fields)
    message = TerminationMessage(stage="poll", exit_code=0, polled=PollResult(source_digest=digest))
    if not digest:
        message = TerminationMessage(stage="poll", exit_code=69, error="no route to s3.example.com\nlines")
    pod = replace(make_pod(0, 0 if digest else 69), message=message)
    ended = make_stage(Stage.POLL, run=run, attempt=attempt, ended="Complete" if digest else "Failed", pods=(pod,))
    return replace(ended, **fields)


def test_a_poll_starts_after_the_interval_and_the_job_stays_complete() -> None:
    status = complete()
    assert status.due_time == "2026-01-01T13:00:00.000Z"
    before = look(status, 59)
    assert (before.actions, before.requeue.seconds) == ((), 60)
    plan = look(status, 60)
    (created,) = plan.actions
    assert isinstance(created, CreateChildren)
    assert (created.config.stage, created.config.run, created.config.attempt) == (Stage.POLL, 1, 1)
    assert plan.status.terminal_condition == status.terminal_condition
    running = look(plan.status, 61, poll_job(None))
    assert [type(action).__name__ for action in running.actions] == ["UpdateStatus"], "nothing is due meanwhile"
    assert (running.status.due_time, running.requeue.seconds) == (None, 30)
    assert look(running.status, 62, poll_job(None)).actions == ()


def test_an_unchanged_listing_is_recorded_and_the_job_of_the_poll_deleted() -> None:
    plan = look(complete(), 62, poll_job("first"))
    assert not [action for action in plan.actions if isinstance(action, DeleteJob)], "before the result is recorded"
    assert plan.requeue.seconds == 1
    assert [type(action) for action in look(plan.status, 63, poll_job("first")).actions] == [DeleteJob]
    assert plan.status.poll is not None
    assert (plan.status.poll.number, plan.status.poll.message, plan.status.run.number) == (1, "", 1)
    deleted = look(plan.status, 63, poll_job("first", deleting=True))
    assert deleted.actions == (), "its Job is being deleted"
    gone = look(plan.status, 64)
    assert gone.status.due_time == "2026-01-01T14:02:00.000Z"


def test_a_failed_poll_is_reported_and_repeated_after_the_interval() -> None:
    plan = look(complete(), 62, poll_job(""))
    assert plan.status.poll is not None
    assert plan.status.poll.message == "no route to s3.example.com"
    (created,) = [action for action in look(plan.status, 122).actions if isinstance(action, CreateChildren)]
    assert created.config.attempt == 2


def test_another_listing_starts_a_run() -> None:
    plan = look(complete(), 62, poll_job("second"))
    (created,) = [action for action in plan.actions if isinstance(action, CreateChildren)]
    assert (created.config.stage, created.config.run) == (Stage.PREPARE, 2)
    assert not [action for action in plan.actions if isinstance(action, DeleteJob)], "before the run is recorded"
    assert "the source files have changed: run 2 replaces run 1" in [event.message for event in plan.events]


def test_a_run_of_an_earlier_version_is_compared_from_its_first_poll_on() -> None:
    plan = look(complete(""), 62, poll_job("second"))
    assert plan.status.run.resolved is not None
    assert (plan.status.run.number, plan.status.run.resolved.source_digest) == (1, "second")


NO_POLL: list[dict[str, Any]] = [{"data": {}}, {"suspend": True}]


@pytest.mark.parametrize("spec", NO_POLL, ids=["not wanted", "suspended"])
def test_a_poll_that_is_not_wanted_any_more_is_deleted(spec: dict[str, Any]) -> None:
    assert look(complete(), 120, **spec).status.due_time is None
    plan = look(complete(), 61, poll_job(None), **spec)
    assert [action for action in plan.actions if isinstance(action, DeleteJob)]
    assert not [action for action in plan.actions if isinstance(action, CreateChildren)]


def test_a_change_of_the_spec_deletes_a_poll_of_the_run_before() -> None:
    plan = look(complete(), 61, poll_job(None), training={"learningRate": 0.5})
    assert plan.status.run.number == 2
    following = look(plan.status, 62, poll_job(None), training={"learningRate": 0.5})
    assert [action for action in following.actions if isinstance(action, DeleteJob)]


@pytest.mark.parametrize("polls", [(poll_job("second"),), ()], ids=["its Job exists", "its Job is gone"])
def test_a_run_whose_start_was_not_recorded_is_adopted(polls: tuple[ObservedAttempt, ...]) -> None:
    """The write of status has failed after the children were created."""
    job = parse_job(make_job("example", **POLLED))
    started = make_stage(Stage.PREPARE, run=2, job_name="example-r2-prepare-a1", run_hash=run_hash(job.spec))
    plan = look(complete(), 63, *polls, others=(started,), budget={"deadline": "30m"})
    assert (plan.status.run.number, plan.status.run.trigger) == (2, "Data")
    assert not [action for action in plan.actions if isinstance(action, DeleteJob | CreateChildren)]


def test_children_of_a_run_that_was_not_recorded_do_not_change_the_result_of_the_one_before() -> None:
    other = make_stage(Stage.PREPARE, run=2, job_name="example-r2-prepare-a1", run_hash="another spec")
    before = complete()
    plan = look(before, 50, others=(other,), budget={"deadline": "30m"})
    assert [type(action) for action in plan.actions if not isinstance(action, UpdateStatus)] == [DeleteJob]
    assert (plan.status.phase, plan.status.terminal_condition) == (before.phase, before.terminal_condition)
    assert (plan.status.newest_run, plan.requeue.seconds) == (2, 1), "its number is not used again"


def test_after_a_failed_preparation_the_files_are_compared_with_the_last_poll() -> None:
    status = look(complete(), 62, poll_job("second")).status
    status = status.model_copy(update={"conditions": complete().conditions}).with_run(
        completion_time="2026-01-01T13:00:00Z"
    )
    assert status.run.resolved is None
    job = parse_job({**make_job("example", **POLLED), "status": status.written()})
    assert poll.next_time(job.spec, job.status) == datetime(2026, 1, 1, 14, 2, tzinfo=UTC)
    same, other = (Observed((), polls=(poll_job(digest, run=2, attempt=2),)) for digest in ("second", "third"))
    assert (poll.found_change(status, job.spec, same), poll.found_change(status, job.spec, other)) == (False, True)


def test_a_poll_on_a_lost_node_is_given_up() -> None:
    status = look(complete(), 62, poll_job("", lost=True)).status
    assert status.poll is not None
    (created,) = [
        one
        for one in look(status, 130, poll_job("", lost=True, deleting=True)).actions
        if isinstance(one, CreateChildren)
    ]
    assert created.config.attempt == 2


def test_a_short_interval_is_refused() -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(make_job(data={"poll": "30s"}))
    assert (
        str(caught.value.violations[0]) == "spec.data.poll must be at least 1m, not 30s; write 1m, or a longer interval"
    )
