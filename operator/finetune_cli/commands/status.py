"""`finetune status`."""

import json
import shutil
from enum import StrEnum
from typing import Annotated

import typer

from finetune_api.clock import utc_now
from finetune_operator.manifests import Manifest

from .. import event_loop
from ..cluster.jobs import ClusterAccess
from ..cluster.lenient_job import lenient_job
from ..display.page import Page
from ..job_sources import JobSource, JobSources
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Context, Kubeconfig, Namespace, WorkDir

_WIDTHS = (80, 120)
"""Minimum and maximum width. Columns do not fit into less, and longer lines are hard to read."""


class Output(StrEnum):
    """Output format."""

    PAGE = "page"
    JSON = "json"


def status(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Job; defaults to the latest local one.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.PAGE,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show progress, attempts, failure and results of a job.

    A local run takes precedence. If there is none, or with --namespace, --context or --kubeconfig, the job is read
    from a cluster.

    Exit status: 0 success, in any phase of the job, 66 no such job, 69 cluster unreachable, 77 access denied, 78 no
    kubeconfig, context or CRD.
    """
    event_loop.run(_show(JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig)), name, output))


async def _show(sources: JobSources, name: str | None, output: Output) -> None:
    async with sources.open(name) as source:
        manifest = await source.read()
        if output is Output.JSON:
            echo(json.dumps(_readable(manifest), indent=2, ensure_ascii=False))
            return
        page = await _page(source, manifest)
    echo("\n".join(page.lines()))


async def _page(source: JobSource, manifest: Manifest) -> Page:
    columns = shutil.get_terminal_size().columns
    return Page(
        job=lenient_job(manifest),
        where=source.where,
        events=await source.events(),
        now=utc_now(),
        width=max(_WIDTHS[0], min(columns, _WIDTHS[1])),
        is_interrupted=source.is_interrupted(),
    )


def _readable(manifest: Manifest) -> Manifest:
    """Return the object without managedFields, like kubectl."""
    metadata = {field: value for field, value in manifest["metadata"].items() if field != "managedFields"}
    return {**manifest, "metadata": metadata}
