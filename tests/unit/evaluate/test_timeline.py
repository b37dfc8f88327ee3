"""Attempts on a time line, phases of a stage, lengths of the data."""

import pytest

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptStatus, Task
from finetune_trainer.evaluate.data_section import length_histogram
from finetune_trainer.evaluate.formatting import duration_text, short_digest, size_text
from finetune_trainer.evaluate.timeline import attempt_bars, phases, restart_marks, step_seconds
from finetune_trainer.tasks.forward import batches_by_length


def test_bars_fill_the_line_in_order(report_inputs):
    inputs = report_inputs()
    bars = attempt_bars(inputs.config.attempts, step_seconds=1.0)
    assert [bar.status.number for bar in bars] == [1, 2, 3]
    assert bars[0].left == 0.0
    last = bars[-1]
    assert last.left + last.startup_width + last.work_width == pytest.approx(100.0)
    assert bars[1].work_width == 0.0
    assert bars[1].startup_seconds is None
    assert (bars[0].startup_seconds, bars[0].seconds) == (21.0, 130.0)
    assert [bar.succeeded for bar in bars] == [False, False, True]
    assert bars[0].lost is not None
    assert bars[0].lost.steps == 16


def test_an_attempt_that_has_not_ended_is_drawn_as_far_as_known():
    running = AttemptStatus(stage=Stage.TRAIN, number=1, job_name="j", start_time="2026-03-01T12:00:00Z")
    (bar,) = attempt_bars([running], 1.0)
    assert (bar.startup_width, bar.work_width, bar.lost) == (0.0, 0.0, None)


def test_the_mean_step_is_that_of_the_last_attempt(report_inputs):
    inputs = report_inputs(Task.CAUSAL_LM)
    assert step_seconds(inputs.training, inputs.config.attempts) == pytest.approx(141.0 / 160)
    assert step_seconds(inputs.training, ()) == pytest.approx(141.0 / 240)


def test_restarts_are_marked_at_the_step_that_they_resumed_from(report_inputs):
    assert restart_marks(report_inputs().config.attempts) == [(80.0, "attempt 3")]


def test_phases_are_in_order_and_small_ones_are_combined():
    found = phases({"save": 10.0, "steps": 85.0, "claim": 0.2, "odd": 4.7, "import": 0.1})
    assert [phase.name for phase in found] == ["steps", "save", "odd", "other"]
    assert sum(phase.share for phase in found) == pytest.approx(1.0)
    assert phases({}) == []


@pytest.mark.parametrize(
    ("lengths", "edges", "counts"),
    [
        ({}, (), ()),
        ({3: 2, 9: 1}, tuple(range(11)), (0, 0, 0, 2, 0, 0, 0, 0, 0, 1)),
        ({10: 1, 100: 5, 119: 1}, tuple(range(0, 130, 5))[:25], (0, 0, 1) + (0,) * 17 + (5, 0, 0, 1)),
    ],
)
def test_lengths_are_counted_in_round_bins(lengths, edges, counts):
    assert length_histogram(lengths) == (edges, counts)


def test_long_rows_make_few_bins():
    edges, counts = length_histogram({4096: 1, 17: 9})
    assert len(counts) <= 24
    assert len(edges) == len(counts) + 1
    assert sum(counts) == 10


def test_batches_are_homogeneous_longest_first_and_complete():
    import numpy as np

    lengths = np.array([5, 50, 7, 6, 200, 8], dtype=np.int32)
    batches = [batch.tolist() for batch in batches_by_length(lengths, max_tokens=100, max_rows=3)]
    assert batches == [[4], [1, 5], [2, 3, 0]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (100_800, "1 d 4 h")],
)
def test_durations_are_formatted_for_people(seconds, text):
    assert duration_text(seconds) == text


def test_sizes_and_digests_are_short():
    assert size_text(22_713_216) == "22.7 M"
    assert size_text(135_000) == "135 k"
    assert size_text(980) == "980"
    assert short_digest("sha256:0123456789abcdef") == "0123456789ab"
