"""Runs that spec.schedule starts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.cron import latest_time, time_following
from finetune_api.v1alpha1 import RunSchedule, RunTrigger, Status
from finetune_api.validation import InvalidJobError, parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import schedule
from finetune_operator.policy.actions import CreateChildren
from finetune_operator.policy.facts import Facts
from finetune_operator.policy.plan import Plan, plan_of
from finetune_operator.settings import OperatorSettings
from observations import make_stage

HOURLY = {"schedule": {"cron": "0 * * * *"}}
START = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


TIMES = [
    ("0 3 * * *", "Etc/UTC", "2026-01-01T12:30:00Z", "2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z"),
    ("30 12 * * *", "Etc/UTC", "2026-01-01T12:30:00Z", "2026-01-01T12:30:00Z", "2026-01-02T12:30:00Z"),
    ("30 12 * * *", "Etc/UTC", "2026-01-01T12:30:00.5Z", "2026-01-01T12:30:00Z", "2026-01-02T12:30:00Z"),
    ("0 3 * * *", "Europe/Berlin", "2026-07-01T00:30:00Z", "2026-06-30T01:00:00Z", "2026-07-01T01:00:00Z"),
    ("0 3 * * *", "Europe/Berlin", "2026-12-01T00:30:00Z", "2026-11-30T02:00:00Z", "2026-12-01T02:00:00Z"),
    # At 01:00 UTC, the clocks of Berlin go back from 03:00 to 02:00.
    ("45 2 * * *", "Europe/Berlin", "2026-10-25T01:00:07Z", "2026-10-25T00:45:00Z", "2026-10-26T01:45:00Z"),
    ("45 2 * * *", "Europe/Berlin", "2026-10-25T00:00:07Z", "2026-10-24T00:45:00Z", "2026-10-25T00:45:00Z"),
    ("30 2 * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z"),
    ("0 0 * * MON", "Etc/UTC", "2026-01-01T12:30:00Z", "2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z"),
]


@pytest.mark.parametrize(("cron", "zone", "moment", "before", "after"), TIMES)
def test_times_are_those_of_the_expression_in_its_zone(
    cron: str, zone: str, moment: str, before: str, after: str
) -> None:
    found, now = RunSchedule(cron=cron, time_zone=zone), datetime.fromisoformat(moment)
    assert (latest_time(found, now), time_following(found, now)) == (
        datetime.fromisoformat(before),
        datetime.fromisoformat(after),
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cron": "0 3 * * * *"}, "spec.schedule.cron must be minute, hour, day of the month, month and day of the week"),
    ({"cron": "99 3 * * *"}, "spec.schedule.cron must be a cron expression, not '99 3 * * *' (bad minute); write"),
    ({"cron": "0 0 30 2 *"}, "spec.schedule.cron must be a cron expression, not '0 0 30 2 *' (bad day-of-month)"),
    (
        {"cron": "0 3 * * *", "timeZone": "Mars/Base"},
        "spec.schedule.timeZone must be a time zone such as Europe/Berlin",
    ),
    ({"cron": "0 3 * * *", "timeZone": "../../etc/passwd"}, "spec.schedule.timeZone must be a time zone such as"),
    ({"cron": "0 3 * * *", "timeZone": "Europe"}, "spec.schedule.timeZone must be a time zone such as"),
]


@pytest.mark.parametrize(("block", "message"), BAD)
def test_a_schedule_without_times_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(make_job(schedule=block))
    (violation,) = caught.value.violations
    assert str(violation).startswith(message)


class Life:
    """A job that is reconciled at several times."""

    def __init__(self, **spec: Any) -> None:
        self.status = Status()
        self.spec = spec

    def look(self, minutes: float, *, complete: bool = False) -> Plan:
        """Reconcile. `complete`: all stages of the current run have succeeded since."""
        job = parse_job({**make_job("job", **self.spec), "status": self.status.written()})
        run = self.status.run.number
        stages = (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE) if complete else ()
        children = tuple(make_stage(stage, run=run, ended="Complete") for stage in stages)
        if not complete and self.status.run.attempts and self.status.terminal_condition is None:
            children = (make_stage(Stage.PREPARE, run=run),)
        facts = Facts(
            {"metadata": {"name": "job"}, "spec": {}}, job, OperatorSettings(), at(minutes), Observed(children)
        )
        plan = plan_of(facts)
        self.status = plan.status
        return plan

    def started(self, minutes: float) -> int | None:
        """Reconcile, and return the number of the run that was started; None: none."""
        before = self.status.run.number
        self.look(minutes)
        return self.status.run.number if self.status.run.number != before else None


def complete_life(**spec: Any) -> Life:
    """A job whose first run has started at minute 0 and is complete at minute 10."""
    life = Life(**spec)
    assert life.started(0) == 1
    life.look(10, complete=True)
    assert life.status.terminal_condition is not None
    return life


def test_the_first_run_starts_at_once_and_the_next_at_the_scheduled_time() -> None:
    life = complete_life(**HOURLY)
    plan = life.look(11)
    assert plan.actions == ()
    assert (plan.requeue.seconds, life.status.due_time) == (19 * 60, "2026-01-01T13:00:00.000Z")
    plan = life.look(30)
    (created,) = [action for action in plan.actions if isinstance(action, CreateChildren)]
    assert (created.config.run, created.config.stage) == (2, Stage.PREPARE), "the data is prepared again"
    assert life.status.run.trigger is RunTrigger.SCHEDULE
    assert life.status.due_time is None
    assert life.status.schedule is not None
    assert life.status.schedule.last_time == "2026-01-01T13:00:00.000Z"
    assert plan.events[-2].message == "a scheduled time passed: run 2 replaces run 1"
    assert [past.result for past in life.status.history] == ["Succeeded"]


def test_missed_times_start_one_run() -> None:
    life = complete_life(**HOURLY)
    assert life.started(30 + 60 * 24 * 400) == 2
    life.look(30 + 60 * 24 * 400 + 5, complete=True)
    assert life.started(30 + 60 * 24 * 400 + 6) is None


@pytest.mark.parametrize(("late", "number"), [(4, 2), (6, None)])
def test_a_time_that_is_too_long_ago_starts_no_run(late: int, number: int | None) -> None:
    life = complete_life(schedule={**HOURLY["schedule"], "startingDeadlineSeconds": 300})
    assert life.started(30 + late) == number
    if number is None:
        assert life.started(90) == 2, "the next time"


@pytest.mark.parametrize(("policy", "number"), [("Forbid", None), ("Replace", 2)])
def test_the_concurrency_policy_decides_about_a_run_in_progress(policy: str, number: int | None) -> None:
    life = Life(schedule={**HOURLY["schedule"], "concurrencyPolicy": policy})
    assert life.started(0) == 1
    assert life.started(30) == number
    if number is None:
        life.look(40, complete=True)
        assert life.started(41) is None, "no run makes up for the time"


def test_a_suspended_job_starts_its_run_when_it_is_resumed() -> None:
    life = complete_life(**HOURLY)
    life.spec = {**HOURLY, "suspend": True}
    assert life.started(31) is None
    life.spec = HOURLY
    assert life.started(45) == 2


def test_a_schedule_that_is_added_or_changed_begins_now() -> None:
    life = complete_life()
    life.spec = HOURLY
    assert life.started(60 * 24) is None
    life.spec = {"schedule": {"cron": "15 * * * *"}}
    assert life.started(60 * 24 + 1) is None
    assert life.status.due_time == "2026-01-02T13:15:00.000Z"
    life.spec = {}
    assert life.started(60 * 48) is None
    assert (life.status.due_time, life.status.schedule) == (None, None)


def test_a_run_that_waits_for_the_end_of_another_one_starts_after_it() -> None:
    """No event follows the end: the object is complete, and its Jobs have ended."""
    life = Life()
    assert life.started(0) == 1
    job = parse_job({**make_job("job"), "status": life.status.written()})
    children = tuple(make_stage(stage, ended="Complete") for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE))
    manifest = {"metadata": {"name": "job"}, "spec": {}}
    plan = plan_of(Facts(manifest, job, OperatorSettings(), at(10), Observed(children), awaits_end=True))
    assert plan.status.terminal_condition is not None
    assert plan.requeue.seconds == 1


def test_a_change_and_a_scheduled_time_together_start_one_run() -> None:
    life = complete_life(**HOURLY)
    life.spec = {**HOURLY, "training": {"learningRate": 0.5}}
    assert life.started(31) == 2
    assert life.status.run.trigger is RunTrigger.SPEC
    assert schedule.next_time(parse_job(make_job(**HOURLY)).spec, life.status) == at(90)
