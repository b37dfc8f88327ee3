"""`finetune run` as used by a script: lines of JSON, signals and exit statuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from factories import make_job
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_operator.yaml_text import dump_all
from finetune_trainer.store import ObjectStore
from process_support import is_alive, until

ROOT = Path(__file__).parents[3]
SECRET = "correct-horse-battery"
COLORS = ("red", "green", "blue", "black")

Line = dict[str, Any]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "finetune_cli", *arguments]


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer")])}


def run(folder: Path, endpoint: str, *, interrupt_when: Callable[[Line], bool]) -> tuple[int, list[Line]]:
    """Exit status and lines of `finetune run job.yaml`; sends one SIGINT at the first matching line."""
    arguments = command("run", "job.yaml", "--endpoint", endpoint, "--output", "json", "--work-dir", "work")
    lines: list[Line] = []
    with subprocess.Popen(arguments, cwd=folder, env=environ(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            lines.append(json.loads(text))
            if interrupt_when(lines[-1]) and not any(map(interrupt_when, lines[:-1])):
                process.send_signal(signal.SIGINT)
    return process.returncode, lines


def printed(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        command(*arguments, "--work-dir", "work"), cwd=folder, env=environ(), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def job_folder(tmp_path: Path, store: ObjectStore, bucket: str) -> Path:
    """A folder with `job.yaml`, whose model and data are in storage."""
    rows = [{"text": f"the {COLORS[index % 4]} house {index}", "label": COLORS[index % 4]} for index in range(80)]
    store.upload_folder(tiny_models.save_tiny_bert(tmp_path / "model"), f"s3://{bucket}/model")
    store.put(f"s3://{bucket}/data.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    job = make_job(
        "colors",
        model={"uri": f"s3://{bucket}/model"},
        data={"train": [{"uri": f"s3://{bucket}/data.jsonl"}]},
        training={"learningRate": 1e-3, "epochs": 15, "globalBatchSize": 4},
        checkpoint={"everySteps": 20},
        workers={"env": [{"name": "API_TOKEN", "value": SECRET}]},
        output={"uri": f"s3://{bucket}/out"},
    )
    del job["metadata"]["namespace"]  # as most users write it
    (tmp_path / "job.yaml").write_text(dump_all([job]))
    return tmp_path


def test_a_script_can_stop_a_run_resume_it_and_read_its_result(
    job_folder: Path, store_server: EmbeddedStore, store: ObjectStore, bucket: str
) -> None:
    status, lines = run(
        job_folder, store_server.endpoint, interrupt_when=lambda line: (line.get("checkpointStep") or 0) >= 20
    )
    assert status == 3
    assert (lines[-1]["event"], lines[-1]["phase"]) == ("finished", "Suspended")
    stopped_at = lines[-1]["status"]["run"]["lastCheckpoint"]["step"]

    status, lines = run(job_folder, store_server.endpoint, interrupt_when=lambda _: False)
    assert status == 0
    (finished,) = [line for line in lines if line["event"] == "finished"]
    assert finished["phase"] == "Succeeded"
    trainings = [attempt for attempt in finished["status"]["run"]["attempts"] if attempt["stage"] == "train"]
    assert trainings[-1]["resumedFromStep"] == stopped_at
    report = next(line["text"] for line in lines if line.get("text", "").startswith("report: "))
    assert "<html" in (job_folder / report.removeprefix("report: ")).read_text()

    heading, row = printed(job_folder, "runs")
    assert row.split()[:4] == ["colors", "1", "Succeeded", "240/240"]
    assert heading.startswith("NAME")
    assert any("rank 0" in line for line in printed(job_folder, "logs", "--stage", "train", "--rank", "0"))
    whole = "\n".join(printed(job_folder, "logs"))
    for output in (
        "prepare a1 rank 0  INFO read 1 file: 80 records",
        "prepare a1 rank 0  INFO train split: 64 rows, ",
        "prepare a1 rank 0  INFO dataset written to s3://",
        "train a1 rank 0  INFO no checkpoint to resume from",
        "train a1 rank 0  INFO checkpoint of step 20 committed in ",
        f"train a2 rank 0  INFO resuming from step {stopped_at} of 240",
        "train a2 rank 0  INFO training finished at step 240",
        "evaluate a1 rank 0  INFO test split of 8 rows: Accuracy ",
        "evaluate a1 rank 0  INFO report written to s3://",
    ):
        assert output in whole
    assert whole.index("prepare a1") < whole.index("train a1") < whole.index("train a2") < whole.index("evaluate a1")

    stored = [info.uri for info in store.list(f"s3://{bucket}/out/")]
    assert any(uri.endswith("/run.json") for uri in stored)
    assert [uri for uri in stored if SECRET.encode() in store.get(uri)] == []
    written = [
        path for path in (job_folder / "work").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert {path.name.split(".")[0] for path in written} == {"FineTuneJob", "Job"}


@pytest.mark.parametrize("sign_of", ["work/store", "work/fork-server.log"], ids=["storage starts", "the run starts"])
def test_ctrl_c_before_anything_runs_ends_immediately_without_a_traceback(job_folder: Path, sign_of: str) -> None:
    """A terminal sends it to the whole process group, including the object store."""
    with subprocess.Popen(
        command("run", "job.yaml", "--work-dir", "work"),
        cwd=job_folder,
        env=environ(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        until((job_folder / sign_of).exists, within=60, what=sign_of)
        os.killpg(process.pid, signal.SIGINT)
        _, output = process.communicate(timeout=60)
    assert "Traceback" not in output
    assert process.returncode in ((130,) if sign_of == "work/store" else (3, 130)), output


def children(pid: int) -> dict[int, str]:
    """Process id and command line of a process's children."""
    found = {}
    for task in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (task / "cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue  # it has just exited
        if parent == pid:
            found[int(task.name)] = words
    return found


def test_a_killed_command_leaves_no_process_behind(job_folder: Path) -> None:
    """Object store, fork server and workers all exit with it."""
    with subprocess.Popen(
        command("run", "job.yaml", "--work-dir", "work", "--output", "json"),
        cwd=job_folder,
        env=environ(),
        stdout=subprocess.DEVNULL,
    ) as process:

        def all_started() -> dict[int, str] | None:
            found = children(process.pid)
            wanted = ("weed", "finetune_trainer.supervisor.forkserver", "finetune_trainer prepare")
            return found if all(any(word in line for line in found.values()) for word in wanted) else None

        started = until(all_started, within=120, what="store, fork server and a worker")
        process.kill()
    until(lambda: not any(map(is_alive, started)), within=20, what="no process is left")
