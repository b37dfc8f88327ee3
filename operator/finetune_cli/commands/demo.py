"""`finetune demo`."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..display import Watch, make_display
from ..display.text import duration
from ..exit_status import of_status
from ..terminal import say
from .options import DEFAULT_WORK_DIR, WatchMode, WorkDir

if TYPE_CHECKING:
    from ..local.demo import DemoResult


def demo(
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    watch: WatchMode = None,
) -> None:
    """Fine-tune a real model here, kill a worker, resume.

    Takes under three minutes on two cores. The last line is one JSON object with what was measured. Exit status as
    that of `finetune run`.
    """
    from ..local.demo import dump, run_demo

    with make_display(watch) as display:
        result = run_demo(work_dir, display)
    if watch is not Watch.JSON:
        say("\n".join(closing_lines(result)))
    say(dump(result))
    raise typer.Exit(of_status(result.job.status))


def own_name() -> str:
    """How this command is called from here: after `make demo` it is not on the path yet."""
    own = Path(sys.argv[0])
    return os.path.relpath(own) if own.name == "finetune" and shutil.which("finetune") is None else "finetune"


def closing_lines(result: "DemoResult") -> Iterator[str]:
    """What the summary of an ordinary run does not say."""
    if result.worst:
        yield "worst topics of the test split (F1, baseline -> tuned)"
        for entry in result.worst:
            before = "-" if entry.baseline_f1 is None else f"{entry.baseline_f1:.2f}"
            yield f"  {entry.label}: {before} -> {entry.f1:.2f} ({entry.support} questions)"
    for lost in result.lost:
        yield (
            f"the kill cost {duration(lost.seconds)}: {lost.steps} repeated steps "
            f"({duration(lost.redo_seconds)}), {duration(lost.restart_seconds)} until the next step"
        )
    if result.report is not None:
        yield f"report  {result.report}"
    if result.job.status.run.artifact is not None:
        yield f"get it  {own_name()} store get {result.job.status.run.artifact.uri}/ model/"
    yield ""
