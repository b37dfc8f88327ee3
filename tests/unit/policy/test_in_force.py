"""The spec in force while an edited spec is invalid, and the time that counts for the deadline."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.clock import rfc3339
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import Spec, Status
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.policy import deadline, history, in_force, runs, steps
from finetune_operator.policy import status as status_policy
from finetune_operator.policy.events import job_events
from observations import STAMP, make_pod, make_stage
from statuses import make_status

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def spec_of(**spec: Any) -> Spec:
    return parse_job(make_job(**spec)).spec


LAST = spec_of(suspend=True, budget={"deadline": "1h"}, restart={"maxRestarts": 7})


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, (False, None, 3)),
        ({"suspend": True}, (True, None, 3)),
        ({"budget": {"deadline": "5m"}}, (False, "5m", 3)),
        ({"suspend": "yes"}, (True, None, 3)),
        ({"suspend": 1}, (True, None, 3)),
        ({"budget": {"deadline": "soon"}}, (False, "1h", 3)),
        ({"budget": []}, (False, "1h", 3)),
        ({"restart": {"maxRestarts": -1}}, (False, None, 7)),
        ({"training": "nonsense", "suspend": True}, (True, None, 3)),
    ],
)
def test_fields_that_can_stop_a_run_are_read_from_the_object_if_they_are_valid(
    written: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    spec = in_force.spec_in_force(written, LAST)
    assert (spec.suspend, spec.budget.deadline, spec.restart.max_restarts) == expected
    assert spec.data == LAST.data
    assert in_force.is_readable(written) is (in_force.spec_in_force(written, None).suspend == spec.suspend and (
        in_force.spec_in_force(written, None).budget == spec.budget
        and in_force.spec_in_force(written, None).restart == spec.restart
    ))  # fmt: skip


PREPARED = make_stage(Stage.PREPARE, ended="Complete")


def decided(written: dict[str, Any], *children: ObservedAttempt, last: Spec | None = None) -> steps.Step | None:
    """The next step of a run whose object has become invalid."""
    observed = Observed(children)
    run = runs.known_run(make_status(run=1, spec_hash="h"), observed.attempts)
    assert run == runs.Run(1, "h", is_new=False)
    status = history.apply_observation(
        make_status(run=1, start_time="2026-01-01T11:00:00Z"), run, observed, None, STAMP
    )
    spec = in_force.spec_in_force(written, last)
    decision = steps.decide(spec, run, status, observed, now=NOW, max_backoff_seconds=300)
    return decision.without_start(observed)


RUNNING = make_stage()
CRASHED = make_stage(ended="Failed", pods=(make_pod(0, 70),))


@pytest.mark.parametrize(
    ("written", "children", "expected"),
    [
        ({}, (PREPARED, RUNNING), steps.Watch(Stage.TRAIN, 1)),
        ({"suspend": True}, (PREPARED, RUNNING), steps.Stop((RUNNING,))),
        ({"suspend": True}, (PREPARED,), steps.StaySuspended()),
        ({}, (PREPARED,), None),
        ({}, (PREPARED, CRASHED), None),
        ({"restart": {"maxRestarts": 0}}, (PREPARED, CRASHED), None),
        ({"budget": {"deadline": "30m"}}, (PREPARED,), None),
    ],
    ids=["runs", "suspended", "stays suspended", "next stage", "next attempt", "failed", "over its deadline, stopped"],
)
def test_running_attempts_continue_or_are_stopped_and_nothing_is_started(
    written: dict[str, Any], children: tuple[ObservedAttempt, ...], expected: steps.Step | None
) -> None:
    assert decided(written, *children) == expected


@pytest.mark.parametrize(
    ("written", "last"),
    [({"budget": {"deadline": "30m"}}, None), ({"budget": 9}, spec_of(budget={"deadline": "30m"}))],
    ids=["of the object", "of the last valid spec"],
)
def test_the_deadline_ends_an_attempt_of_an_invalid_object(written: dict[str, Any], last: Spec | None) -> None:
    decision = decided(written, PREPARED, RUNNING, last=last)
    assert isinstance(decision, steps.Stop)
    assert decision.reason is Reason.DEADLINE_EXCEEDED


def test_the_object_reports_that_it_is_not_accepted_while_its_attempt_continues() -> None:
    before = status_policy.status_after(make_status(run=1), steps.Watch(Stage.TRAIN, 1), generation=1, now=STAMP)
    violation = Violation("spec.training.microBatchSize", "5 does not divide 16")
    notes = status_policy.StatusNotes(violations=(violation,))

    def pass_over(status: Status, now: str) -> Status:
        watch = steps.Watch(Stage.TRAIN, 1)
        return status_policy.status_after(status, watch, generation=2, now=now, notes=notes)

    after = pass_over(before, STAMP)
    assert pass_over(after, "2026-01-02T00:00:00Z") == after, "a second reconcile of the same state changes nothing"
    conditions = {entry.type: entry for entry in after.conditions}
    assert after.phase is Phase.TRAINING
    assert (conditions["Ready"].status, conditions["Accepted"].status) == ("True", "False")
    assert str(violation) in conditions["Accepted"].message
    assert [reported.reason for reported in job_events(before, after)] == ["InvalidSpec"]
    assert job_events(after, after) == ()


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def left(status: Status, minutes: float, *, suspend: bool) -> float | None:
    """Minutes until a deadline of one hour."""
    seconds = deadline.seconds_left(spec_of(suspend=suspend, budget={"deadline": "1h"}), status, at(minutes))
    return None if seconds is None else seconds / 60


def test_suspended_time_does_not_count_for_the_deadline() -> None:
    status = make_status(run=1, start_time=STAMP)
    assert left(status, 20, suspend=False) == 40
    status = deadline.with_suspension(status, True, rfc3339(at(20)))
    assert deadline.with_suspension(status, True, rfc3339(at(30))) == status
    assert left(status, 200, suspend=True) == 40
    status = deadline.with_suspension(status, False, rfc3339(at(500)))
    assert deadline.with_suspension(status, False, rfc3339(at(501))) == status
    assert left(status, 510, suspend=False) == 30
    status = deadline.with_suspension(status, True, rfc3339(at(510)))
    status = deadline.with_suspension(status, False, rfc3339(at(520)))
    assert left(status, 530, suspend=False) == 20
