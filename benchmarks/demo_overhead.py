"""Benchmark the demo: the share of optimizer steps in its time, and a restart compared with a cold start.

    python benchmarks/demo_overhead.py [--work-dir DIR]

stepShare: time in optimizer steps of all attempts, divided by the wall time of the demo (store, uploads, preparation,
both attempts, evaluation). restartRatio: time from SIGKILL of a worker to the next optimizer step of the run, divided
by the time from the start of the command to the first optimizer step when the same attempt starts in new processes,
without a fork server; both resume from a checkpoint of the same run. Prints tables and, as the last line, a JSON
object.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "trainer")]

from finetune_api.constants import Stage  # noqa: E402
from finetune_api.progress import Progress  # noqa: E402
from finetune_api.v1alpha1 import FineTuneJob  # noqa: E402
from finetune_cli.job_file import JobFile, read_job_file  # noqa: E402
from finetune_cli.local.demo import quickstart_file, run_demo  # noqa: E402
from finetune_cli.local.runner import run_job  # noqa: E402
from finetune_operator.clusters.local import LocalCluster  # noqa: E402


@dataclass
class Recorder:
    """A display that stores the last progress of every attempt, and the time at which its first step was seen."""

    phases: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    first_step: dict[int, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        if progress is None:
            return
        attempt = job.status.run.attempt if progress.attempt == 0 else progress.attempt
        self.phases[progress.stage, attempt] = progress.phase_seconds
        if progress.stage == Stage.TRAIN and progress.first_step_time:
            self.first_step.setdefault(attempt, time.monotonic())

    def event(self, text: str) -> None:
        print(text)

    def finish(self, job: FineTuneJob) -> None:
        print(f"{job.metadata.name}: {job.status.phase}")


def step_share(work_dir: Path) -> float:
    """Return the share of optimizer steps in the wall time of the demo."""
    recorder = Recorder()
    result = run_demo(work_dir, recorder)
    spent: dict[str, float] = {}
    print(f"\n{'stage':<10} {'attempt':>7} {'phase':<10} {'seconds':>8} {'share':>6}")
    for (stage, attempt), phases in recorder.phases.items():
        for name, seconds in phases.items():
            spent[name] = spent.get(name, 0.0) + seconds
            print(f"{stage:<10} {attempt:>7} {name:<10} {seconds:>8.2f} {seconds / result.seconds:>6.1%}")
    other = result.seconds - sum(spent.values())
    print(f"{'all':<10} {'':>7} {'outside':<10} {other:>8.2f} {other / result.seconds:>6.1%}")
    print(f"{'all':<10} {'':>7} {'total':<10} {result.seconds:>8.2f}\n")
    return spent.get("steps", 0.0) / result.seconds


def restart_ratio(work_dir: Path) -> tuple[float, float]:
    """Return the seconds from a kill to the next step, and from the start of a command to its first step."""
    file = read_job_file(quickstart_file())
    manifest = {**file.manifest, "spec": {**file.manifest["spec"], "runNonce": "restart-benchmark"}}
    file = replace(file, manifest=manifest)
    _run(file, work_dir, _once(lambda job, cluster: os.kill(os.getpid(), signal.SIGINT)))

    killed: list[float] = []

    def kill(job: FineTuneJob, cluster: LocalCluster) -> None:
        cluster.kill_pod(job.status.run.attempts[-1].job_name, 1)
        killed.append(time.monotonic())

    recorder, started = Recorder(), [0.0]
    _run(file, work_dir, _once(kill), recorder, started)
    trainings = sorted(recorder.first_step)
    cold = recorder.first_step[trainings[0]] - started[0]
    warm = recorder.first_step[trainings[1]] - killed[0]
    return warm, cold


def _run(
    file: JobFile,
    work_dir: Path,
    on_tick: Callable[[FineTuneJob, Progress | None, LocalCluster], None],
    recorder: Recorder | None = None,
    started: list[float] | None = None,
) -> None:
    def note(_: object) -> None:
        if started is not None:
            started[0] = time.monotonic()

    run_job(file, work_dir=work_dir, endpoint=None, display=recorder or Recorder(), prepare=note, on_tick=on_tick)


def _once(
    action: Callable[[FineTuneJob, LocalCluster], None],
) -> Callable[[FineTuneJob, Progress | None, LocalCluster], None]:
    """Run the action once, when an attempt has completed a step and a checkpoint is committed."""
    done: list[bool] = []

    def tick(job: FineTuneJob, progress: Progress | None, cluster: LocalCluster) -> None:
        ready = progress is not None and progress.stage == Stage.TRAIN and progress.first_step_time is not None
        if ready and job.status.run.last_checkpoint is not None and not done:
            done.append(True)
            action(job, cluster)

    return tick


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work-dir", type=Path, help="default: a temporary folder")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = options.work_dir or Path(temporary)
        share = step_share(work_dir)
        warm, cold = restart_ratio(work_dir)
    print(f"kill to next step {warm:.2f} s, cold start to first step {cold:.2f} s, ratio {warm / cold:.2f}")
    summary = {
        "stepShare": round(share, 3),
        "restartRatio": round(warm / cold, 3),
        "restartSeconds": round(warm, 2),
        "coldStartSeconds": round(cold, 2),
    }
    print(json.dumps({"benchmark": "demo_overhead", **summary}))


if __name__ == "__main__":
    main()
