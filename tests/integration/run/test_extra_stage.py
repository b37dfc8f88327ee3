"""A stage is one row of the table and its own module; everything else uses these."""

import json
import os
import subprocess
import sys
from pathlib import Path

import extra_stage
from finetune_trainer.store import ObjectStore

ROOT = Path(__file__).parents[3]


def test_a_stage_that_is_added_to_the_table_runs_last_with_the_results_of_the_others(
    bench, store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import extra_stage\nextra_stage.register()\n")
    (tmp_path / "job.yaml").write_text(json.dumps(bench.job(training={"epochs": 1})))
    path = [str(tmp_path), *(str(ROOT / folder) for folder in ("operator", "trainer", "tests/support"))]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "finetune_cli",
            "run",
            "job.yaml",
            f"--endpoint={bench.storage.endpoint}",
            "--output=json",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    lines = map(json.loads, done.stdout.splitlines())
    (status,) = [line["status"] for line in lines if line["event"] == "finished"]
    attempts = [(entry["stage"], entry["outcome"]) for entry in status["run"]["attempts"]]
    assert attempts == [(stage, "Succeeded") for stage in ("prepare", "train", "evaluate", extra_stage.NAME)]
    (found,) = [entry.uri for entry in store.list(f"s3://{bucket}/out/") if entry.uri.endswith("/signature.json")]
    assert store.get_json(found) == {
        "model": status["run"]["artifact"]["uri"],
        "base": status["run"]["resolved"]["modelDigest"],
        "attempts": 1,
    }
