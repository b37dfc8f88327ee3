"""`finetune runs` and `finetune logs` with a work folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from factories import make_job, merged
from finetune_api.constants import Stage
from finetune_cli.commands.logs import logs
from finetune_cli.commands.runs import row, runs
from finetune_cli.exit_status import CommandError
from finetune_cli.local.state import RUN_LOCK, LocalState
from finetune_cli.locks import is_locked, try_lock
from statuses import SUCCEEDED, TRAINING


def put(work_dir: Path, name: str, status: dict[str, Any], *, namespace: str = "default", at: float = 1000.0) -> Path:
    folder = work_dir / "jobs" / namespace / name
    (folder / "objects").mkdir(parents=True)
    (folder / "logs").mkdir()
    path = folder / "objects" / f"FineTuneJob.{name}.json"
    path.write_text(json.dumps({**make_job(name, namespace=namespace), "status": status}))
    os.utime(path, (at, at))
    return folder


def put_log(folder: Path, name: str, *messages: tuple[str, str]) -> None:
    lines = (json.dumps({"time": time, "rank": 0, "level": "INFO", "message": text}) for time, text in messages)
    (folder / "logs" / name).write_text("".join(f"{line}\n" for line in lines))


def test_the_default_is_the_latest_job(tmp_path: Path) -> None:
    put(tmp_path, "older", {}, at=1000)
    put(tmp_path, "newer", {}, at=2000, namespace="team")
    state = LocalState(tmp_path)
    assert [job.key.name for job in state.jobs()] == ["newer", "older"]
    assert state.find(None).key.name == "newer"
    assert state.find("older").key.name == "older"
    assert state.find("team/newer").key.name == "newer"


def test_an_unknown_job_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="contains no runs; start one with"):
        LocalState(tmp_path).find(None)
    put(tmp_path, "topics", {})
    with pytest.raises(CommandError, match="contains no run of topic; existing jobs: topics"):
        LocalState(tmp_path).find("topic")


def test_a_row_shows_the_state_of_a_run(tmp_path: Path) -> None:
    put(tmp_path, "done", SUCCEEDED)
    put(tmp_path, "half", TRAINING, namespace="team")
    done, half = (LocalState(tmp_path).find(name) for name in ("done", "half"))
    assert row(done, is_running=False, now=1060) == (
        "done",
        "1",
        "Succeeded",
        "296/296",
        "accuracy 87.8 %",
        "1 min 00 s",
    )
    assert row(half, is_running=True, now=1001)[2:5] == ("Training", "180/296", "training loss 0.412")
    assert row(half, is_running=False, now=1001)[:3] == ("team/half", "1", "Interrupted")


@pytest.mark.parametrize(
    ("task", "metrics", "shown"),
    [
        ("SequenceClassification", {"Loss": 0.5, "Accuracy": 0.9, "MacroF1": 0.4}, "accuracy 90.0 %"),
        ("TokenClassification", {"Loss": 0.5, "Accuracy": 0.9, "MacroF1": 0.4}, "macro F1 40.0 %"),
        ("CausalLM", {"Loss": 0.5, "Perplexity": 1.65}, "perplexity 1.65"),
        ("CausalLM", {}, "-"),
    ],
)
def test_the_metric_of_a_run_is_the_one_its_task_is_compared_by(
    tmp_path: Path, task: str, metrics: dict[str, float], shown: str
) -> None:
    status = merged(SUCCEEDED, {"run": {"candidates": None, "progress": None}})
    run = {"resolved": {"task": task}, "candidates": {"tuned": {"metrics": metrics}}}
    put(tmp_path, "job", merged(status, {"run": run}))
    assert row(LocalState(tmp_path).find("job"), is_running=False, now=1060)[4] == shown


def test_runs_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path)
    assert "no runs in" in capsys.readouterr().out
    put(tmp_path, "topics", SUCCEEDED)
    runs(tmp_path)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "RUN", "PHASE", "STEP", "METRIC", "AGE"]
    assert line.split()[:4] == ["topics", "1", "Succeeded", "296/296"]


@pytest.mark.parametrize("follow", [False, True])
def test_logs_prints_the_whole_run_sorted_by_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], follow: bool
) -> None:
    folder = put(tmp_path, "topics", SUCCEEDED)
    put_log(folder, "topics-r1-train-a1-0.log", ("2026-01-01T11:00:00", "of the run before"))
    put_log(folder, "topics-r2-prepare-a1-0.log", ("2026-01-01T12:00:00", "prepared"))
    put_log(folder, "topics-r2-train-a1-0.log", ("2026-01-01T12:00:01", "failed"))
    put_log(folder, "topics-r2-train-a10-0.log", ("2026-01-01T12:00:02", "first"), ("2026-01-01T12:00:04", "third"))
    put_log(folder, "topics-r2-train-a10-1.log", ("2026-01-01T12:00:03", "second"))
    put_log(folder, "topics-r2-evaluate-a1-0.log", ("2026-01-01T12:00:05", "evaluated"))
    evaluate = folder / "logs/topics-r2-evaluate-a1-0.log"
    evaluate.write_text(f"no time\n{evaluate.read_text()}")
    put_log(folder, "other-r1-evaluate-a1-0.log", ("2026-01-01T12:00:00", "of another job"))

    def printed(**options: Any) -> list[str]:
        logs("topics", work_dir=tmp_path, follow=follow, **options)
        return [line.split()[-1] for line in capsys.readouterr().out.splitlines()]

    assert printed() == ["prepared", "failed", "first", "second", "third", "time", "evaluated"]
    assert printed(stage=Stage.TRAIN) == ["failed", "first", "second", "third"]
    assert printed(attempt=1) == ["prepared", "failed", "time", "evaluated"]
    assert printed(stage=Stage.TRAIN, attempt=10, rank=0) == ["first", "second", "third"]


def test_a_missing_log_is_reported_with_the_existing_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path, "topics", SUCCEEDED)
    put_log(folder, "topics-r1-train-a1-0.log", ("2026-01-01T12:00:00", "old"))
    put_log(folder, "topics-r1-train-a10-0.log", ("2026-01-01T12:00:01", "new"))
    logs("topics", attempt=1, work_dir=tmp_path)
    assert capsys.readouterr().out == "12:00:00 train a1 rank 0  INFO old\n"
    with pytest.raises(CommandError, match="existing logs: train attempt 1, train attempt 10"):
        logs("topics", attempt=2, work_dir=tmp_path)


def test_a_log_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path, "topics", SUCCEEDED)
    said = "\x1b]0;title\x07 red\x1b[31m \x9b2J back\x08 \u202etxt.exe \u2028 tab\t end"
    put_log(folder, "topics-r1-train-a1-0.log", ("2026-01-01T12:00:00", said), ("\x1b[2J" * 8, "clock"))
    (folder / "logs/topics-r1-train-a1-1.log").write_bytes(b"\x1b[1mbare\x1b[0m\rover\n\xff\n")
    logs("topics", work_dir=tmp_path)
    printed = capsys.readouterr().out
    assert [character for character in printed if ord(character) < 32 and character not in "\n\t"] == []
    assert not set(printed) & set("\x9b\x7f\u202e\u2028")
    assert "\\u001b]0;title\\u0007 red\\u001b[31m \\u009b2J back\\u0008 \\u202etxt.exe" in printed
    assert "\\u001b[1mbare\\u001b[0m\\u000dover" in printed


def test_following_an_ended_run_prints_it_and_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path, "topics", SUCCEEDED)
    put_log(folder, "topics-r1-train-a1-0.log", ("2026-01-01T12:00:00", "a"), ("2026-01-01T12:00:01", "b"))
    logs("topics", follow=True, work_dir=tmp_path)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_a_lock_has_one_holder_and_is_released_with_it(tmp_path: Path) -> None:
    path = tmp_path / RUN_LOCK
    assert not is_locked(path)
    held = try_lock(path)
    assert held is not None
    assert is_locked(path)
    assert try_lock(path) is None
    assert LocalState(tmp_path).is_running
    held.release()
    assert not is_locked(path)
