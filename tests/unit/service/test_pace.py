"""How often running jobs are looked at by time alone."""

import pytest

from finetune_operator.worker import fair_wait


@pytest.mark.parametrize(
    ("jobs", "pass_seconds", "wait"),
    [(0, 1.0, 0.0), (1, 0.02, 0.05), (100, 0.02, 5.0), (1000, 0.02, 50.0), (100, 1.2, 50.0)],
    ids=["none", "one", "as many as may be fresh", "more", "slow answers"],
)
def test_many_jobs_or_slow_answers_are_asked_less_often(jobs: int, pass_seconds: float, wait: float) -> None:
    assert fair_wait(jobs, pass_seconds, workers=24) == pytest.approx(wait)
