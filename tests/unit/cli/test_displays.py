"""The displays of a run: live, plain and JSON."""

import io
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from rich.spinner import Spinner

from factories import merged
from finetune_api.constants import Stage
from finetune_cli.display import JsonDisplay, PlainDisplay, make_display
from finetune_cli.display.live import LiveDisplay, LossCurve, frame, summary_table
from finetune_cli.display.summary import APPLY_AGAIN, summarize
from finetune_cli.display.view import StageState, snapshot
from statuses import FAILED, RESTARTING, SUCCEEDED, SUSPENDED, TRAINING, job_with, live

NOW = datetime(2026, 1, 1, 12, 1, 0, tzinfo=UTC)

ALL = {
    "training": TRAINING,
    "restarting": RESTARTING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "suspended": SUSPENDED,
    "unborn": {},
}


class Clock:
    """A clock that tests advance manually."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rendered(renderable: Any, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("status", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_live_part_never_wraps_and_has_a_constant_height(status: dict[str, Any], width: int) -> None:
    view = snapshot(job_with(status, "a-job-with-quite-a-long-name-of-40-chars"), live(stage=Stage.TRAIN), NOW)
    lines = rendered(frame(view, LossCurve(), Spinner("dots")), width)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)


def test_the_live_part_at_80_columns() -> None:
    curve = LossCurve()
    for step, loss in enumerate([3.0, 2.0, 1.5, 1.0, 0.4]):
        curve.add(step, loss)
    view = snapshot(job_with(TRAINING), live(), NOW)
    title, stages, bar, figures, state = rendered(frame(view, curve, Spinner("dots")))
    assert title.startswith("topics  run 1  Training  1 min 00 s")
    assert re.fullmatch(r"✓ prepare 6 s   . train 1 min 00 s   ○ evaluate *", stages)
    assert bar.endswith("step 182/296 · 61 %")
    assert figures == "loss 0.412 █▅▄▃▁  epoch 4.9  2,140 tokens/s  left 24 s"
    assert state == "checkpoint step 180 10 s ago  validation loss 0.61, accuracy 84.2 %  training"


def test_a_restart_shows_the_attempt_and_where_it_resumed() -> None:
    view = snapshot(job_with(RESTARTING), live(attempt=2, resumed_from_step=120), NOW)
    title = rendered(frame(view, LossCurve(), Spinner("dots")))[0]
    assert title.startswith("topics  run 1  attempt 2 resumed from step 120  Restarting")


def test_repeated_steps_replace_their_losses_in_the_curve() -> None:
    curve = LossCurve()
    for step, loss in [(1, 8.0), (2, 4.0), (3, 2.0), (2, 4.0), (3, 1.0)]:
        curve.add(step, loss)
    assert curve.bars(10) == "█▄▁"


@pytest.mark.parametrize(
    ("status", "states"),
    [
        ({}, "waiting waiting waiting"),
        (TRAINING, "done running waiting"),
        (SUCCEEDED, "done done done"),
        (FAILED, "failed waiting waiting"),
        (SUSPENDED, "done stopped waiting"),
    ],
)
def test_stages_show_the_progress_of_the_run(status: dict[str, Any], states: str) -> None:
    view = snapshot(job_with(status), None, NOW)
    assert [stage.state for stage in view.stages] == [StageState(word) for word in states.split()]


def test_progress_of_another_stage_is_ignored() -> None:
    view = snapshot(job_with(TRAINING), live(stage=Stage.PREPARE, step=7), NOW)
    assert (view.figures.step, view.activity) == (180, "")


def test_the_summary_compares_baseline_and_tuned() -> None:
    lines = rendered(summary_table(summarize(job_with(SUCCEEDED))))
    text = "\n".join(lines)
    assert "topics: fine-tuned" in text
    assert ["accuracy", "9.5", "%", "87.8", "%", "+78.4", "points"] in [line.split() for line in lines]
    assert ["loss", "2.833", "0.512", "-2.321"] in [line.split() for line in lines]
    assert "1, 2 training attempts, resumed from step 120, 2 min 05 s" in text
    assert dict(summarize(job_with(SUCCEEDED)).facts)["linear model"] == "accuracy 71.0 %, macro F1 62.0 %, loss 1.2"
    assert "s3://demo/runs/topics/runs/r0001-1f3a9c42/report.html" in text
    assert max(len(line) for line in lines) <= 80


def test_the_summary_of_a_failure_has_error_place_and_advice() -> None:
    facts = dict(summarize(job_with(FAILED)).facts)
    assert facts["error"].startswith("s3://b/train.jsonl:17: not JSON")
    assert facts["advice"] == "correct the line, or set spec.data.onBadRecord to Skip"
    assert facts["where"] == "stage prepare, rank 0, topics-r1-prepare-a1-0"
    assert facts["class"] == "BadData (exit status 65)"
    assert facts["logs"] == "finetune logs topics"
    assert facts["to continue"] == "correct the problem and run the same command again"
    assert (
        dict(summarize(job_with(FAILED), next_steps=APPLY_AGAIN).facts)["to continue"]
        == "correct the spec and apply it again"
    )


def test_the_summary_of_a_suspended_run_says_how_to_resume() -> None:
    summary = summarize(job_with(SUSPENDED))
    assert summary.title == "topics: suspended, checkpoint saved"
    assert dict(summary.facts)["resume"] == "run the same command again"
    assert dict(summary.facts)["checkpoint"] == "step 180, s3://b/c.json"


def plain_lines(*moments: tuple[dict[str, Any], Any]) -> list[str]:
    """Return the lines of the plain display without times, with ten seconds between updates."""
    stream, clock = io.StringIO(), Clock()
    with PlainDisplay(stream, clock=clock) as display:
        for status, progress in moments:
            display.update(job_with(status), progress)
            clock.now += 10
    return [line[10:] for line in stream.getvalue().splitlines()]


def test_the_plain_display_shows_a_killed_worker_and_the_resume() -> None:
    lines = plain_lines(
        (TRAINING, live()),
        (RESTARTING, None),
        (
            {**RESTARTING, "phase": "Training"},
            live(attempt=2, resumed_from_step=120, step=121, activity="", evaluation={}),
        ),
    )
    assert lines == [
        "topics: run 1",
        "prepare: done in 6 s",
        "train: started",
        "train: checkpoint of step 180 committed",
        "train: validation loss 0.61, accuracy 84.2 %",
        "train: training",
        "train: step 182 of 296, loss 0.4123, 2,140 tokens/s, 24 s left",
        "attempt 1 ended: Signal9 in topics-r1-train-a1-1",
        "restarting the training",
        "train: attempt 2 resumed from the checkpoint of step 120",
        "train: step 121 of 296, loss 0.4123, 2,140 tokens/s, 24 s left",
    ]


def test_the_plain_display_shows_the_end_of_an_attempt_once() -> None:
    succeeded = merged(RESTARTING, {"phase": "Succeeded", "run": {"failure": None}})
    assert [line for line in plain_lines((RESTARTING, None), (succeeded, None)) if "ended" in line] == [
        "attempt 1 ended: Signal9 in topics-r1-train-a1-1"
    ]


def test_a_line_of_progress_fits_into_80_columns() -> None:
    long = live(step=9_876, total_steps=9_999, loss=2.3456, tokens_per_second=9_876.0, eta_seconds=3_599.0)
    assert max(map(len, plain_lines((TRAINING, long)))) + len("12:34:56  ") <= 80


@pytest.mark.parametrize(
    ("stage", "said"),
    [("prepare", "restarting the preparation"), ("evaluate", "restarting the evaluation")],
)
def test_the_plain_display_names_the_stage_that_restarts(stage: str, said: str) -> None:
    assert said in plain_lines((merged(RESTARTING, {"run": {"stage": stage}}), None))


def test_the_plain_display_does_not_repeat_itself() -> None:
    once = plain_lines((TRAINING, live(warnings=("disk is slow",))))
    again = plain_lines(*[(TRAINING, live(warnings=("disk is slow",)))] * 5)
    assert again == once
    assert "warning: disk is slow" in once


def test_the_plain_display_writes_at_most_one_progress_line_in_two_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, clock=clock)
    for step in range(100):
        display.update(job_with(TRAINING), live(step=step))
        clock.now += 0.2
    assert sum("tokens/s" in line for line in stream.getvalue().splitlines()) == 10


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED, SUSPENDED], ids=["succeeded", "failed", "suspended"])
def test_the_plain_summary_has_no_color_and_no_boxes(status: dict[str, Any]) -> None:
    stream = io.StringIO()
    PlainDisplay(stream).finish(job_with(status))
    assert stream.getvalue().isascii()


def test_json_lines_always_have_the_same_keys() -> None:
    stream, clock = io.StringIO(), Clock()
    display = JsonDisplay(stream, clock=clock)
    for status in ({}, TRAINING, RESTARTING, SUCCEEDED):
        display.update(job_with(status), live() if status is TRAINING else None)
    display.event("hello")
    display.finish(job_with(SUCCEEDED))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * 4 + ["message", "finished"]
    assert list(lines[0]) == [
        *("event", "time", "job", "run", "phase", "stage", "attempt", "activity", "step", "totalSteps", "percent"),
        *("epoch", "loss", "learningRate", "tokensPerSecond", "etaSeconds", "checkpointStep", "resumedFromStep"),
        *("validation", "warnings"),
    ]
    assert all(list(line) == list(lines[0]) for line in lines[:4])
    assert lines[-1]["status"]["run"]["candidates"]["tuned"]["metrics"]["Accuracy"] == 0.8784


def test_json_lines_are_written_at_most_once_a_second_except_for_events() -> None:
    stream, clock = io.StringIO(), Clock()
    display = JsonDisplay(stream, clock=clock)
    for step in range(50):
        display.update(job_with(TRAINING), live(step=step))
        clock.now += 0.2
    assert len(stream.getvalue().splitlines()) == 10
    display.update(job_with(RESTARTING), None)
    assert len(stream.getvalue().splitlines()) == 11


def test_without_a_terminal_the_display_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_display(None), PlainDisplay)


def test_the_live_display_prints_events_above_the_live_part() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    with LiveDisplay(console) as display:
        display.update(job_with(TRAINING), live(warnings=("disk is slow",)))
        display.update(job_with(TRAINING), live(warnings=("disk is slow",)))
        display.update(job_with(RESTARTING), None)
        display.event("kill -9 of worker 1")
        display.finish(job_with(SUCCEEDED))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("warning: disk is slow") == 1
    assert "attempt 1 ended: Signal9 in topics-r1-train-a1-1" in text
    assert text.index("kill -9 of worker 1") < text.index("topics: fine-tuned")
