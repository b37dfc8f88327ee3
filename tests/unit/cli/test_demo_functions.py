"""Functions of the demo: selection of questions, time of the kill, report."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import Stage
from finetune_api.progress import Progress
from finetune_cli.job_file import read_job_file
from finetune_cli.local.demo import DemoResult, is_time_to_kill, quickstart_file, worst_classes
from finetune_cli.local.demo_assets import as_jsonl, frequent, read_questions
from statuses import SUCCEEDED, TRAINING, job_with, live

EVALUATION: dict[str, Any] = {
    "baseline": {"classification": {"per_class": [{"label": "AI", "f1": 0.2, "support": 6}]}},
    "tuned": {
        "classification": {
            "per_class": [
                {"label": "AI", "f1": 0.9, "support": 6},
                {"label": "food", "f1": 0.0, "support": 1},
                {"label": "gossip", "f1": 0.0, "support": 0},
                {"label": "money", "f1": 0.5, "support": 2},
                {"label": "sports", "f1": 1.0, "support": 2},
            ]
        }
    },
}


def test_duplicate_questions_and_rare_topics_are_dropped(tmp_path: Path) -> None:
    for topic, texts in {"AI": ["a "] * 3 + [f"q{index}" for index in range(9)], "food": ["b"] * 30}.items():
        rows = "".join(f"- - {text}\n  - answer\n" for text in texts)
        (tmp_path / f"{topic}.yml").write_text(f"categories:\n- {topic}\n- more\nconversations:\n{rows}")
    questions = read_questions(tmp_path)
    assert len(questions) == 11
    assert {topic for _, topic in frequent(questions)} == {"AI"}
    assert json.loads(as_jsonl(questions).splitlines()[0]) == {"text": "a", "label": "AI"}


@pytest.mark.parametrize(
    ("progress", "kills"),
    [
        (live(step=148), True),
        (live(step=147), False),
        (live(step=296), False),
        (live(step=0, total_steps=0), False),
        (live(step=200, last_checkpoint=None), False),
    ],
)
def test_the_worker_is_killed_half_way_and_only_with_a_checkpoint(progress: Progress, kills: bool) -> None:
    assert is_time_to_kill(progress) is kills


def test_the_worst_classes_are_those_with_test_rows() -> None:
    worst = worst_classes(EVALUATION)
    assert [(entry.label, entry.f1, entry.baseline_f1) for entry in worst] == [
        ("food", 0.0, None),
        ("money", 0.5, None),
        ("AI", 0.9, 0.2),
    ]
    assert worst_classes({}) == ()
    assert worst_classes({"tuned": {"classification": None}}) == ()


def test_the_last_line_contains_the_measurements() -> None:
    result = DemoResult(job_with(SUCCEEDED), Path("report.html"), worst_classes(EVALUATION), (), 125.04)
    assert result.as_json() == {
        "baseline": {"accuracy": 0.0946, "macroF1": 0.021, "loss": 2.833},
        "tuned": {"accuracy": 0.8784, "macroF1": 0.791, "loss": 0.512},
        "attempts": 2,
        "resumedFromStep": 120,
        "steps": 296,
        "secondsLost": 0,
        "seconds": 125.0,
        "worst": [{"label": "food", "f1": 0.0}, {"label": "money", "f1": 0.5}, {"label": "AI", "f1": 0.9}],
        "report": str(Path("report.html").resolve()),
        "model": "s3://demo/runs/topics/runs/r0001-1f3a9c42/model",
    }


def test_a_demo_that_did_not_finish_reports_no_figures() -> None:
    values = DemoResult(job_with(TRAINING), None, (), (), 1.0).as_json()
    assert (values["tuned"], values["report"], values["model"], values["resumedFromStep"]) == ({}, None, None, None)


def test_the_demo_runs_the_quickstart_sample_on_two_workers() -> None:
    job = read_job_file(quickstart_file()).check(local=True)
    assert job.spec.workers.nodes == 2
    assert live().stage == Stage.TRAIN
