"""`finetune watch`."""

from typing import Annotated

import typer

from .. import event_loop
from ..cluster.jobs import ClusterAccess
from ..display import Display, make_display
from ..display.summary import APPLY_AGAIN, RUN_AGAIN
from ..exit_status import FAILED, KILLED, of_status
from ..job_sources import JobSources
from ..watching import watch_job
from .options import DEFAULT_WORK_DIR, Context, Kubeconfig, Namespace, WatchMode, WorkDir


def watch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Job; defaults to the latest local one.")] = None,
    mode: WatchMode = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a job until it has ended or is suspended. Ctrl-C stops the command, not the job.

    A local run takes precedence. If there is none, or with --namespace, --context or --kubeconfig, the job is read
    from a cluster.

    Exit status: that of `finetune run`, and 66 no such job, 69 cluster unreachable, 77 access denied, 78 no
    kubeconfig, context or CRD, 130 stopped by Ctrl-C.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    is_local = sources.local(name) is not None
    with make_display(mode, next_steps=RUN_AGAIN if is_local else APPLY_AGAIN) as display:
        try:
            exit_status = event_loop.run(_watch(sources, name, display))
        except KeyboardInterrupt:
            display.event("the job continues")
            exit_status = KILLED
    raise typer.Exit(exit_status)


async def _watch(sources: JobSources, name: str | None, display: Display) -> int:
    async with sources.open(name) as source:
        job = await watch_job(source, display)
        if job is not None:
            return of_status(job.status)
        display.event("interrupted: no process runs it; `finetune run JOB.yaml` resumes")
        return FAILED
