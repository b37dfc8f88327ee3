"""Run the benchmarks of the main job; the last line is a JSON object with the four ratios.

uniformRatio and mixedLengthRatio come from training_speed.py, stepShare and restartRatio from demo_overhead.py.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATIOS = ("uniformRatio", "mixedLengthRatio", "stepShare", "restartRatio")


def main() -> None:
    """Run both benchmarks, print their tables, and merge their results."""
    figures = {**_run("training_speed.py"), **_run("demo_overhead.py")}
    print(json.dumps({name: figures[name] for name in RATIOS}))


def _run(script: str) -> dict[str, Any]:
    print(f"== {script}", flush=True)
    process = subprocess.Popen([sys.executable, HERE / script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line
    if process.wait():
        raise SystemExit(f"{script} failed with status {process.returncode}")
    figures: dict[str, Any] = json.loads(last)
    return figures


if __name__ == "__main__":
    main()
