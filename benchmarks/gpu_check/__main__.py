"""Run the checks, print a table, and as the last line a JSON object."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .checks import Checks, Device
from .flops import peak_tflops
from .results import Budget, exit_status, last_line, run_checks
from .runs import started_runs

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def main() -> int:
    """Return 0 if no check failed."""
    options = _options()
    started, budget = time.monotonic(), Budget(options.seconds)
    gpu = options.device == "cuda" or (options.device == "auto" and _has_gpu())
    with (
        tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.folder) as folder,
        started_runs(Path(folder), options.assets, budget, gpu=gpu) as runs,
    ):
        found = runs.call("gpu_check.ranks:describe", gpu=gpu)
        if gpu and found["kind"] != "cuda":
            raise SystemExit("torch sees no CUDA GPU; use an image whose torch has CUDA, or --device cpu")
        peak = options.peak_tflops or (
            peak_tflops(found["name"]) if gpu else runs.call("gpu_check.ranks:matrix_tflops")
        )
        device = Device(found["kind"], found["name"], found["bytes"], peak)
        print(f"device: {found}, peak {peak} TFLOP/s; {options.seconds:g} s at most", flush=True)
        checks = [check for check in Checks(runs, device).all() if not options.only or check.name in options.only]
        rows = run_checks(checks, budget, lambda row: print(row.as_text(), flush=True))
    print(last_line(rows, found | {"peakTflops": peak}, time.monotonic() - started))
    return exit_status(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--seconds", type=float, default=480.0, help="time budget of all checks")
    parser.add_argument("--only", nargs="*", metavar="CHECK", help="names of the checks to run")
    parser.add_argument("--peak-tflops", type=float, help="dense peak of the GPU in BFloat16, if it is not known")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder with the tokenizer and the rows")
    parser.add_argument("--folder", help="folder for temporary files, up to 10 GB with a GPU")
    return parser.parse_args()


def _has_gpu() -> bool:
    """Whether the driver has a device, without loading CUDA into this process."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


if __name__ == "__main__":
    sys.exit(main())
