"""The checks for GPUs run here on the CPU, with the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_cheapest_check_holds_on_the_cpu(tmp_path: Path) -> None:
    paths = [ROOT / "benchmarks", ROOT / "operator", ROOT / "trainer", ROOT / "tests/support"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TRANSFORMERS_VERBOSITY": "error"}
    assets = tmp_path / "assets"
    subprocess.run([sys.executable, "-m", "gpu_check.assets", assets], check=True, env=environment)
    checks = ["classification-zero0-fp32"]
    command = [sys.executable, "-m", "gpu_check", "--device", "cpu", "--peak-tflops", "1", "--assets", assets]
    ended = subprocess.run([*command, "--only", *checks], check=False, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = json.loads(ended.stdout.splitlines()[-1])
    (row,) = last["gpuCheck"]
    assert (row["name"], row["holds"]) == (checks[0], True)
    assert row["figures"]["lastLoss"] < row["figures"]["firstLoss"]
    assert row["figures"]["reloadDifference"] <= row["figures"]["reloadTolerance"]
    assert last["failed"] == []
