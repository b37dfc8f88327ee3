"""`finetune logs`."""

from collections.abc import Iterable
from typing import Annotated

import typer

from finetune_api.constants import Stage

from .. import event_loop
from ..cluster.jobs import ClusterAccess
from ..cluster.logs import ClusterLogs
from ..job_sources import JobSources
from ..local import logs as local_logs
from ..local.state import LogFile
from ..log_lines import LogLine, is_of_rank
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Context, Kubeconfig, Namespace, WorkDir


def logs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Job; defaults to the latest local one.")] = None,
    *,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Only this attempt of each stage.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Only this stage.")] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Only this rank.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the logs until the run has ended.")] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the logs of the workers.

    Prints all stages and attempts of the newest run, sorted by time.

    A local run takes precedence. If there is none, or with --namespace, --context or --kubeconfig, the job is read
    from a cluster. Logs in a cluster are available until their pods are deleted.

    Exit status: 0 success, 1 no such log, 66 no such job, 69 cluster unreachable, 77 access denied, 78 no
    kubeconfig, context or CRD.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    local = sources.local(name)
    if local is None:
        assert name is not None, "local() raises an error for a cluster without a name"
        event_loop.run(_from_cluster(sources, name, stage, attempt, rank, follow=follow))
        return

    def wanted(log: LogFile) -> bool:
        return stage in (None, log.stage) and attempt in (None, log.attempt)

    _print(local_logs.follow(local.state, name, wanted) if follow else local_logs.entries_now(local.job, wanted), rank)


async def _from_cluster(
    sources: JobSources, name: str, stage: Stage | None, attempt: int | None, rank: int | None, *, follow: bool
) -> None:
    async with sources.cluster(name) as jobs:
        cluster_logs = ClusterLogs(jobs, name, stage, attempt)
        if not follow:
            _print(await cluster_logs.now(), rank)
            return
        async for entries in cluster_logs.follow():
            _print(entries, rank)


def _print(entries: Iterable[LogLine], rank: int | None) -> None:
    for entry in entries:
        if is_of_rank(entry, rank):
            echo(entry.readable())
