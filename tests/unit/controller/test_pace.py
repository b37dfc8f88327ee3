"""Interval of reconciles by time for running jobs."""

import pytest

from finetune_operator.controller.worker import fair_wait, paced
from finetune_operator.policy.actions import RequeueReason
from finetune_operator.settings import OperatorSettings


@pytest.mark.parametrize(
    ("jobs", "pass_seconds", "wait"),
    [(0, 1.0, 0.0), (1, 0.02, 0.05), (100, 0.02, 5.0), (1000, 0.02, 50.0), (100, 1.2, 50.0)],
    ids=["none", "one", "as many as may be fresh", "more", "slow answers"],
)
def test_many_jobs_or_slow_responses_are_polled_less_often(jobs: int, pass_seconds: float, wait: float) -> None:
    assert fair_wait(jobs, pass_seconds, workers=24) == pytest.approx(wait)


@pytest.mark.parametrize(
    ("running", "waiting", "due", "progress_seconds", "waiting_seconds"),
    [
        (1, 0, 0, 5.0, 0.0),
        (1000, 0, 0, 50.0, 0.0),
        (10, 0, 2000, 5.0, 0.0),
        (10, 500, 0, 5.0, 100.0),
        (400, 500, 5000, 20.0, 100.0),
    ],
    ids=["one", "many run", "many are finished", "many wait", "all of them"],
)
def test_jobs_that_wait_or_are_finished_do_not_delay_running_ones(
    running: int, waiting: int, due: int, progress_seconds: float, waiting_seconds: float
) -> None:
    looks = {RequeueReason.PROGRESS: running, RequeueReason.WAITING: waiting, RequeueReason.DUE: due}
    found = paced(OperatorSettings(), looks, pass_seconds=0.02, workers=24)
    assert (found.progress_seconds, found.waiting_seconds) == (
        pytest.approx(progress_seconds),
        pytest.approx(waiting_seconds),
    )
