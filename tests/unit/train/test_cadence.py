"""How often the state is saved: what a crash may cost, against what saves cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.train.cadence import (
    AIM,
    OVERHEAD,
    SaveCosts,
    interval_seconds,
    interval_steps,
    late_seconds,
    spread_seconds,
    why_lost_is_more,
)

# Ten minutes may be lost.
INTERVALS = [
    pytest.param(SaveCosts(step=1.0), 404, id="nothing measured: a quarter is left for the upload"),
    pytest.param(SaveCosts(step=10.0), 39, id="a long step counts, for the next chance comes one later"),
    pytest.param(SaveCosts(step=1.0, landing=60.0), 404, id="an upload that is faster than it has to be"),
    pytest.param(SaveCosts(step=1.0, landing=200.0), 339, id="one that takes longer"),
    pytest.param(SaveCosts(step=1.0, stall=2.0, drag=5.0, landing=200.0), 332, id="and one that is felt"),
    pytest.param(
        SaveCosts(step=1.0, landing=400.0), 400, id="one that takes most of the time: the next one waits for it"
    ),
    pytest.param(SaveCosts(step=1.0, stall=30.0), 857, id="saves that cost too much come less often"),
    pytest.param(SaveCosts(step=1.0, stall=10.0, drag=20.0), 857, id="by slowing steps down, too"),
    pytest.param(SaveCosts(step=2000.0), 1, id="never less than a step"),
]


@pytest.mark.parametrize(("costs", "steps"), INTERVALS)
def test_steps_between_saves(costs: SaveCosts, steps: int) -> None:
    assert interval_steps(600.0, costs) == steps


def test_before_a_step_was_measured_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="no step was measured"):
        interval_steps(600.0, SaveCosts())


SECONDS = st.floats(min_value=0.001, max_value=3000.0)


@given(lost=SECONDS, step=SECONDS, stall=SECONDS, drag=SECONDS, landing=SECONDS)
def test_a_crash_costs_what_it_may_unless_saves_cost_too_much(
    lost: float, step: float, stall: float, drag: float, landing: float
) -> None:
    interval = interval_seconds(lost, SaveCosts(step=step, stall=stall, drag=drag, landing=landing))
    assert stall + drag <= OVERHEAD * interval * 1.0001
    assert interval >= landing
    worst = interval + landing + stall + drag + step
    assert worst <= AIM * lost * 1.0001 or interval in ((stall + drag) / OVERHEAD, landing)


MORE = [
    pytest.param(SaveCosts(step=1.0, stall=0.1, drag=2.0, landing=60.0), "", id="what was asked for"),
    pytest.param(
        SaveCosts(step=1.0, stall=1.0, drag=29.0, landing=60.0),
        "a crash may cost 948 s of work, not the 600 s of spec.checkpoint.maxLostWork: a save costs 30.0 s, and all of "
        "them 3.5% of the time at most",
        id="saves that cost too much",
    ),
    pytest.param(
        SaveCosts(step=1.0, landing=500.0),
        "a crash may cost 1001 s of work, not the 600 s of spec.checkpoint.maxLostWork: a checkpoint takes 500 s until "
        "it is stored",
        id="storage that is slow",
    ),
]


@pytest.mark.parametrize(("costs", "told"), MORE)
def test_that_a_crash_may_cost_more_is_told_with_its_reason(costs: SaveCosts, told: str) -> None:
    assert why_lost_is_more(600.0, costs) == told


def test_an_upload_ends_well_before_the_next_one_begins() -> None:
    assert spread_seconds(300.0) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("promised", "late"), [(600.0, 750.0), (48.0, 60.0), (2.0, 60.0)], ids=["a quarter more", "a minute", "never less"]
)
def test_from_when_on_a_checkpoint_is_late(promised: float, late: float) -> None:
    assert late_seconds(promised) == late
