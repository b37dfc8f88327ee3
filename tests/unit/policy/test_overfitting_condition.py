"""The losses of overfitting: report of the train pod -> status, condition, Event, later attempts and runs."""

from typing import Any

import pytest

from finetune_api.constants import ConditionType, Reason, Stage
from finetune_api.progress import MAX_TERMINATION_BYTES, OverfittingEvidence, Progress, TerminationMessage
from finetune_api.v1alpha1 import Status
from finetune_operator.observed import Observed
from finetune_operator.policy import steps
from finetune_operator.policy.events import job_events
from finetune_operator.policy.history import apply_observation
from finetune_operator.policy.runs import Run
from finetune_operator.policy.status import status_after
from observations import STAMP, make_pod, make_stage
from statuses import make_status

RISEN = {
    "found": True,
    "step": 60,
    "validation_loss": 0.9,
    "training_loss": 0.25,
    "lowest_step": 40,
    "lowest_validation_loss": 0.75,
    "training_loss_at_lowest": 0.65,
}
LOWEST = RISEN | {"found": False, "step": 40, "validation_loss": 0.75, "training_loss": 0.65}
RISEN_TEXT = (
    "step 60: training loss 0.25, validation loss 0.9; since its lowest value, 0.75 at step 40, the validation loss "
    "has changed by +0.0075 per step, and the training loss from 0.65 to 0.25"
)
FIRST = make_status(run=1, stage="train", attempt=1)


def reported(before: Status, losses: dict[str, Any] | None, *, attempt: int = 1, run: Run | None = None) -> Status:
    """The status after rank 0 of a running attempt has answered."""
    evidence = None if losses is None else OverfittingEvidence.model_validate(losses)
    sent = Progress(stage="train", attempt=attempt, step=60, total_steps=90, overfitting=evidence)
    read = Progress.decode(sent.model_dump_json(exclude_defaults=True).encode())
    children = (make_stage(Stage.TRAIN, attempt, pods=(make_pod(0),)),)
    run = run or Run(1, "", is_new=False)
    status = apply_observation(before.with_run(attempt=attempt), run, Observed(children), read, STAMP)
    return status_after(status, steps.Watch(Stage.TRAIN, attempt), generation=1, now=STAMP)


def condition(status: Status) -> tuple[str, Reason, str] | None:
    found = (entry for entry in status.conditions if entry.type is ConditionType.OVERFITTING)
    return next(((entry.status, entry.reason, entry.message) for entry in found), None)


def kinds(before: Status, after: Status) -> list[tuple[Reason, bool]]:
    return [(event.reason, event.is_warning) for event in job_events(before, after) if "verf" in event.reason]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (None, None),
        (
            LOWEST,
            ("False", Reason.NO_OVERFITTING, "step 40: training loss 0.65, validation loss 0.75, the lowest so far"),
        ),
        (RISEN | {"found": False}, ("False", Reason.NO_OVERFITTING, RISEN_TEXT)),
        (RISEN, ("True", Reason.TRAINING_OVERFITS, RISEN_TEXT)),
    ],
    ids=["an older trainer", "lowest", "risen once", "overfits"],
)
def test_the_condition_has_the_reported_losses(losses: dict[str, Any] | None, expected: Any) -> None:
    after = reported(FIRST, losses)
    assert condition(after) == expected
    seen = after.run.overfitting
    assert (None if seen is None else seen.model_dump()) == losses
    assert Status.read(after.written()) == after


def test_it_is_reported_once_over_validations_and_attempts() -> None:
    healthy = reported(FIRST, LOWEST)
    overfits = reported(healthy, RISEN)
    silent = reported(overfits, None, attempt=2)
    again = reported(silent, RISEN, attempt=2)
    resumed_earlier = reported(again, LOWEST, attempt=2)
    assert kinds(FIRST, healthy) == []
    assert kinds(healthy, overfits) == [(Reason.TRAINING_OVERFITS, True)]
    assert (kinds(overfits, silent), kinds(silent, again)) == ([], [])
    found = [condition(status) for status in (overfits, silent, again, resumed_earlier)]
    assert [entry and entry[0] for entry in found] == ["True", "True", "True", "False"]


def test_it_does_not_change_what_kstatus_reads() -> None:
    """Tools that follow kstatus read Reconciling, Stalled, Ready and, in jobs, Complete and Failed."""
    plain, overfits = reported(FIRST, None), reported(FIRST, RISEN)
    others = tuple(entry for entry in overfits.conditions if entry.type is not ConditionType.OVERFITTING)
    assert others == plain.conditions
    assert overfits.phase is plain.phase


def test_a_new_run_begins_without_it_and_a_reused_run_has_it_again() -> None:
    overfits = reported(FIRST, RISEN)
    second = apply_observation(overfits, Run(2, "other", is_new=True), Observed(()), None, STAMP)
    started = status_after(second, steps.Start(Stage.PREPARE, 1), generation=2, now=STAMP)
    assert (started.run.overfitting, condition(started)) == (None, None)
    (past,) = started.history
    assert past.overfitting == overfits.run.overfitting
    reused = apply_observation(started, Run(1, "", is_new=True, reused=past), Observed(()), None, STAMP)
    back = status_after(reused, steps.Start(Stage.TRAIN, 2), generation=3, now=STAMP)
    assert condition(back) == condition(overfits)


def test_a_message_that_is_too_long_keeps_the_losses() -> None:
    evidence = OverfittingEvidence.model_validate(RISEN)
    progress = Progress(stage="train", attempt=1, overfitting=evidence, phase_seconds={"x" * 4000: 1.0})
    text = TerminationMessage(stage="train", exit_code=0, progress=progress).encode()
    assert len(text) <= MAX_TERMINATION_BYTES
    read = TerminationMessage.decode(text)
    assert read is not None
    assert read.progress is not None
    assert read.progress.overfitting == evidence
