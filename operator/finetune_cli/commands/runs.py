"""`finetune runs`: list the runs in a work folder."""

import time

from finetune_api.v1alpha1 import TASK_SUPPORT, CandidateName, Status

from ..display.table import table_lines
from ..display.text import duration, metric_name, metric_value
from ..local.state import LocalJob, LocalState
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, WorkDir

_HEADINGS = ("NAME", "RUN", "PHASE", "STEP", "METRIC", "AGE")


def runs(work_dir: WorkDir = DEFAULT_WORK_DIR) -> None:
    """List the runs in a work folder, the latest first."""
    state = LocalState(work_dir)
    is_running = state.is_running
    rows = [row(job, is_running=is_running, now=time.time()) for job in state.jobs()]
    if not rows:
        echo(f"no runs in {work_dir}; start one with `finetune run JOB.yaml`")
        return
    echo("\n".join(table_lines(_HEADINGS, rows, gap=3)))


def row(job: LocalJob, *, is_running: bool, now: float) -> tuple[str, ...]:
    """Return name, run, phase, step, metric and age of a job. `is_running`: a process runs a job in the work folder."""
    status = job.status
    phase = status.phase.value
    if not (status.phase.is_terminal or is_running):
        phase = "Interrupted"
    name = job.key.name if job.key.namespace == "default" else str(job.key)
    progress = status.run.progress
    step = f"{progress.step}/{progress.total_steps}" if progress and progress.total_steps else "-"
    return (name, str(status.run.number or "-"), phase, step, _metric(status), duration(max(0.0, now - job.changed)))


def _metric(status: Status) -> str:
    tuned = status.metrics_of(CandidateName.TUNED)
    resolved = status.run.resolved
    tasks = {task: row for task, row in TASK_SUPPORT.items() if resolved is None or resolved.task in ("", task)}
    headline = next((row.headline for row in tasks.values() if row.headline in tuned), None)
    if headline is not None:
        return f"{metric_name(headline)} {metric_value(headline, tuned[headline])}"
    loss = status.run.progress.loss if status.run.progress else None
    return f"training loss {loss:.4g}" if loss is not None else "-"
