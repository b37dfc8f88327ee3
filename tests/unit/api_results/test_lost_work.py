"""Cost of restarts, computed by hand."""

import pytest

from finetune_api.constants import Stage
from finetune_api.lost_work import LostWork, lost_work
from finetune_api.v1alpha1 import AttemptStatus, Outcome


def clock(minute: float) -> str:
    return f"2026-03-01T12:{int(minute):02d}:{round(60 * (minute % 1)):02d}Z"


def attempt(
    number, start, first=None, end=None, *, resumed=None, last=None, outcome=Outcome.RETRYABLE
) -> AttemptStatus:
    return AttemptStatus(
        stage=Stage.TRAIN,
        number=number,
        job_name=f"job-r1-train-a{number}",
        start_time=clock(start),
        first_step_time=None if first is None else clock(first),
        end_time=None if end is None else clock(end),
        resumed_from_step=resumed,
        last_step=last,
        outcome=outcome,
    )


DONE = {"outcome": Outcome.SUCCEEDED}


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        pytest.param([], [], id="no attempts"),
        pytest.param([attempt(1, 0, 1, 30, last=100, **DONE)], [], id="one attempt"),
        pytest.param(
            [attempt(1, 0, 1, 10, last=50), attempt(2, 11, 12, 30, resumed=40, last=100, **DONE)],
            [LostWork(attempt=1, steps=10, redo_seconds=20.0, restart_seconds=120.0)],
            id="ten steps and two minutes after a crash",
        ),
        pytest.param(
            [attempt(1, 0, 1, 10, last=7), attempt(2, 11, 11.5, 30, last=100, **DONE)],
            [LostWork(attempt=1, steps=7, redo_seconds=14.0, restart_seconds=90.0)],
            id="without a checkpoint every step is lost",
        ),
        pytest.param(
            [
                attempt(1, 0, 1, 10, last=50),
                attempt(2, 11, None, 12),
                attempt(3, 13, 14, 30, resumed=40, last=100, **DONE),
            ],
            [
                LostWork(attempt=1, steps=10, redo_seconds=20.0, restart_seconds=120.0),
                LostWork(attempt=2, steps=0, redo_seconds=0.0, restart_seconds=120.0),
            ],
            id="an attempt without steps adds restart time only",
        ),
        pytest.param(
            [
                attempt(1, 0, 1, 10, last=50),
                attempt(2, 11, 12, 15, resumed=40, last=45),
                attempt(3, 15, 16, 30, resumed=40, last=100, **DONE),
            ],
            [
                LostWork(attempt=1, steps=10, redo_seconds=20.0, restart_seconds=120.0),
                LostWork(attempt=2, steps=5, redo_seconds=10.0, restart_seconds=60.0),
            ],
            id="the same steps can be lost twice",
        ),
        pytest.param(
            [
                attempt(1, 0, 1, 10, last=50, outcome=Outcome.STOPPED),
                attempt(2, 40, 41, 55, resumed=50, last=100, **DONE),
            ],
            [LostWork(attempt=1, steps=0, redo_seconds=0.0, restart_seconds=60.0)],
            id="suspended time is not lost, restart time is",
        ),
        pytest.param(
            [attempt(1, 0, 1, 10, last=50), attempt(2, 11)],
            [],
            id="unknown values are omitted",
        ),
        pytest.param(
            [attempt(2, 11, 12, 30, resumed=40, last=100, **DONE), attempt(1, 0, 1, 10, last=50)],
            [LostWork(attempt=1, steps=10, redo_seconds=20.0, restart_seconds=120.0)],
            id="the order of the list does not matter",
        ),
    ],
)
def test_lost_work_matches_the_timestamps(attempts, expected):
    assert lost_work(attempts, step_seconds=2.0) == expected


def test_the_loss_is_the_sum_of_both_kinds():
    assert LostWork(attempt=1, steps=3, redo_seconds=6.0, restart_seconds=30.0).seconds == 36.0
