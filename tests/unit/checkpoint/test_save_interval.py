"""How often the state is saved: what a crash may cost against what saves cost."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.v1alpha1 import Checkpoint
from finetune_trainer.checkpoint.save_interval import (
    MAX_OVERHEAD,
    TARGET_SHARE,
    SaveCosts,
    SavePolicy,
    interval_seconds,
    interval_steps,
    late_seconds,
    upload_seconds,
    why_lost_is_more,
)

# Ten minutes may be lost.
INTERVALS = [
    pytest.param(SaveCosts(step=1.0), 404, id="nothing measured: a quarter is reserved for the upload"),
    pytest.param(SaveCosts(step=10.0), 39, id="a long step counts: the next opportunity comes one step later"),
    pytest.param(SaveCosts(step=1.0, commit_latency=60.0), 404, id="an upload that is fast enough"),
    pytest.param(SaveCosts(step=1.0, commit_latency=200.0), 339, id="one that takes longer"),
    pytest.param(
        SaveCosts(step=1.0, stall=2.0, upload_overhead=5.0, commit_latency=200.0),
        332,
        id="an upload that slows steps down",
    ),
    pytest.param(
        SaveCosts(step=1.0, commit_latency=400.0),
        400,
        id="an upload that takes most of the time: the next one waits for it",
    ),
    pytest.param(SaveCosts(step=1.0, stall=30.0), 857, id="expensive saves are less frequent"),
    pytest.param(SaveCosts(step=1.0, stall=10.0, upload_overhead=20.0), 857, id="by slowing steps down, too"),
    pytest.param(SaveCosts(step=2000.0), 1, id="never less than a step"),
]


@pytest.mark.parametrize(("costs", "steps"), INTERVALS)
def test_steps_between_saves(costs: SaveCosts, steps: int) -> None:
    assert interval_steps(600.0, costs) == steps


def test_there_is_no_interval_before_a_step_was_measured() -> None:
    with pytest.raises(ValueError, match="the time of a step must be measured first"):
        interval_steps(600.0, SaveCosts())


SECONDS = st.floats(min_value=0.001, max_value=3000.0)


@given(lost=SECONDS, step=SECONDS, stall=SECONDS, overhead=SECONDS, latency=SECONDS)
def test_a_crash_costs_what_is_allowed_unless_saves_cost_too_much(
    lost: float, step: float, stall: float, overhead: float, latency: float
) -> None:
    costs = SaveCosts(step=step, stall=stall, upload_overhead=overhead, commit_latency=latency)
    interval = interval_seconds(lost, costs)
    assert stall + overhead <= MAX_OVERHEAD * interval * 1.0001
    assert interval >= latency
    worst = interval + latency + stall + overhead + step
    assert worst <= TARGET_SHARE * lost * 1.0001 or interval in ((stall + overhead) / MAX_OVERHEAD, latency)


MORE = [
    pytest.param(SaveCosts(step=1.0, stall=0.1, upload_overhead=2.0, commit_latency=60.0), "", id="as requested"),
    pytest.param(
        SaveCosts(step=1.0, stall=1.0, upload_overhead=29.0, commit_latency=60.0),
        "a crash may lose 948 s of work, not the 600 s of spec.checkpoint.maxLostWork: a save takes 30.0 s, and "
        "saves may use at most 3.5% of time",
        id="saves that cost too much",
    ),
    pytest.param(
        SaveCosts(step=1.0, commit_latency=500.0),
        "a crash may lose 1001 s of work, not the 600 s of spec.checkpoint.maxLostWork: a checkpoint takes 500 s until "
        "it is stored",
        id="storage that is slow",
    ),
]


@pytest.mark.parametrize(("costs", "reported"), MORE)
def test_a_higher_cost_of_a_crash_is_reported_with_the_reason(costs: SaveCosts, reported: str) -> None:
    assert why_lost_is_more(600.0, costs) == reported


def test_an_upload_ends_well_before_the_next_one_starts() -> None:
    assert upload_seconds(300.0) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("promised", "late"), [(600.0, 750.0), (48.0, 60.0), (2.0, 60.0)], ids=["a quarter more", "a minute", "never less"]
)
def test_when_a_checkpoint_is_late(promised: float, late: float) -> None:
    assert late_seconds(promised) == late


def policy_of(**checkpoint: Any) -> SavePolicy:
    return SavePolicy.of(Checkpoint.model_validate(checkpoint), total_steps=21)


def test_saves_by_steps_occur_at_the_interval_and_at_the_end() -> None:
    assert [step for step in range(1, 22) if policy_of(everySteps=8).saves_at(step)] == [8, 16, 21]


def test_saves_by_time_occur_at_no_step_but_the_last() -> None:
    assert [step for step in range(1, 22) if policy_of().saves_at(step)] == [21]


@pytest.mark.parametrize(("step", "soon"), [(93, False), (94, True), (95, True)])
def test_a_save_by_time_is_skipped_in_the_last_tenth_of_the_allowed_loss(step: int, soon: bool) -> None:
    assert SavePolicy(total_steps=100, max_lost_seconds=600.0).ends_soon(step, step_seconds=10.0) is soon


def test_lost_work_is_ten_minutes_by_default() -> None:
    assert policy_of().max_lost_seconds == 600.0
    assert policy_of(maxLostWork="90s").max_lost_seconds == 90.0


def test_without_a_limit_nothing_is_too_stale() -> None:
    assert policy_of().max_stale_seconds == math.inf
    assert policy_of(uploadTimeout="1h").max_stale_seconds == 3600.0
