"""`finetune status` and `watch` for a local run, from another process."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from finetune_cli.local.state import RUN_LOCK
from finetune_cli.locks import try_lock
from process_support import base_environment
from statuses import SUCCEEDED, TRAINING


def put(folder: Path, status: dict[str, Any]) -> None:
    path = folder / ".finetune/jobs/default/topics/objects/FineTuneJob.topics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**make_job("topics"), "status": {**status, "observedGeneration": 1}}))


def started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_cli", *arguments],
        cwd=folder,
        env={**base_environment(), "COLUMNS": "80", "KUBECONFIG": str(folder / "none")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = started(folder, *arguments)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_status_shows_a_local_run(tmp_path: Path) -> None:
    assert ran(tmp_path, "status", "topics")[0::2] == (
        66,
        "finetune: .finetune contains no runs; start one with `finetune run JOB.yaml`\n",
    )
    put(tmp_path, TRAINING)
    status, out, _ = ran(tmp_path, "status")
    assert status == 0
    assert out.splitlines()[0].startswith("topics: Training for ")
    assert "local run in .finetune, run 1, " in out
    assert "interrupted: no process runs it" in out
    assert json.loads(ran(tmp_path, "status", "-o", "json")[1])["status"]["phase"] == "Training"


@pytest.mark.parametrize(("status", "code"), [(SUCCEEDED, 0), (TRAINING, 1)], ids=["over", "interrupted"])
def test_watch_ends_with_the_run(tmp_path: Path, status: dict[str, Any], code: int) -> None:
    put(tmp_path, status)
    assert ran(tmp_path, "watch")[0] == code


def test_ctrl_c_ends_the_watch_and_not_the_run(tmp_path: Path) -> None:
    put(tmp_path, TRAINING)
    lock = try_lock(tmp_path / ".finetune" / RUN_LOCK)
    assert lock is not None
    process = started(tmp_path, "watch", "topics")
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        timer.cancel()
        lock.release()
    assert (process.returncode, err) == (130, "")
    assert "".join([*lines, out]).splitlines()[-1].endswith("the job continues")
