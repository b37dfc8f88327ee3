"""`finetune demo`."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..display import DisplayMode, make_display
from ..display.text import duration
from ..exit_status import of_status
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, WatchMode, WorkDir

if TYPE_CHECKING:
    from ..local.demo import DemoResult


def demo(
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    watch: WatchMode = None,
) -> None:
    """Fine-tune a real model, kill a worker, and resume.

    Takes less than three minutes on two cores. The last line is a JSON object with the measurements. The exit status
    is that of `finetune run`.
    """
    from ..local.demo import dump, run_demo

    with make_display(watch) as display:
        result = run_demo(work_dir, display)
    if watch is not DisplayMode.JSON:
        echo("\n".join(closing_lines(result)))
    echo(dump(result))
    raise typer.Exit(of_status(result.job.status))


def command_name() -> str:
    """Return the command to show in hints: `finetune`, or its path if it is not on PATH (as after `make demo`)."""
    own = Path(sys.argv[0])
    return os.path.relpath(own) if own.name == "finetune" and shutil.which("finetune") is None else "finetune"


def closing_lines(result: "DemoResult") -> Iterator[str]:
    """Yield the lines that the demo adds to the summary of a run."""
    if result.worst:
        yield "topics of the test split with the lowest F1 (base model -> tuned)"
        for entry in result.worst:
            before = "-" if entry.baseline_f1 is None else f"{entry.baseline_f1:.2f}"
            yield f"  {entry.label}: {before} -> {entry.f1:.2f} ({entry.support} questions)"
    for lost in result.lost:
        yield (
            f"time lost by the kill: {duration(lost.seconds)}: {lost.steps} repeated steps "
            f"({duration(lost.redo_seconds)}), {duration(lost.restart_seconds)} until the first new step"
        )
    if result.report is not None:
        yield f"report  {result.report}"
    if result.job.status.run.artifact is not None:
        yield f"get it  {command_name()} store get {result.job.status.run.artifact.uri}/ model/"
    yield ""
