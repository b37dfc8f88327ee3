"""Attempts that status lists before a reconcile has observed their Jobs."""

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptStatus, Outcome
from finetune_operator.observed import Observed
from finetune_operator.policy import history
from finetune_operator.policy.runs import Run
from observations import STAMP, make_stage
from statuses import make_status

RUN = Run(1, "hash", is_new=False)
RUNNING = make_stage()
NAME = RUNNING.job_name
STARTED = AttemptStatus(stage=Stage.TRAIN, number=1, job_name=NAME, start_time=STAMP)


def test_a_started_attempt_is_the_one_that_the_next_reconcile_observes() -> None:
    started = history.record_started(make_status(run=1, spec_hash="hash"), STARTED)
    assert [(entry.job_name, entry.start_time, entry.outcome) for entry in started.run.attempts] == [
        (NAME, STAMP, None)
    ]
    assert history.record_started(started, STARTED.model_copy(update={"start_time": "later"})) == started
    assert history.apply_observation(started, RUN, Observed((RUNNING,)), None, STAMP) == started, "nothing to write"


def test_a_started_attempt_whose_job_was_deleted_was_stopped() -> None:
    started = history.record_started(make_status(run=1, spec_hash="hash"), STARTED)
    (attempt,) = history.apply_observation(started, RUN, Observed(()), None, STAMP).run.attempts
    assert attempt.outcome is Outcome.STOPPED


def test_pods_are_read_until_the_end_of_their_job_is_classified() -> None:
    ended = AttemptStatus(stage=Stage.PREPARE, number=1, job_name="old", start_time=STAMP, outcome=Outcome.SUCCEEDED)
    running = AttemptStatus(stage=Stage.TRAIN, number=1, job_name=NAME, start_time=STAMP)
    status = make_status(attempts=(ended, running))
    over = {"conditions": [{"type": "Complete", "status": "True"}]}
    jobs = [{"metadata": {"name": name}, "status": over} for name in ("old", NAME, "new")]
    assert history.open_jobs(status, jobs) == tuple(sorted((NAME, "new")))


def test_pods_are_read_while_a_job_that_was_given_up_exists_and_while_the_job_of_an_open_attempt_is_missing() -> None:
    lost = AttemptStatus(stage=Stage.TRAIN, number=1, job_name="lost", start_time=STAMP, outcome=Outcome.DISRUPTION)
    gone = AttemptStatus(stage=Stage.TRAIN, number=2, job_name="gone", start_time=STAMP)
    assert history.open_jobs(make_status(attempts=(lost, gone)), [{"metadata": {"name": "lost"}}]) == ("gone", "lost")
