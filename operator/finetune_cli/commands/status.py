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
from ..places import JobPlace, Places
from ..terminal import say
from .options import DEFAULT_WORK_DIR, Context, Kubeconfig, Namespace, WorkDir

_WIDTHS = (80, 120)
"""Narrower cannot be read in columns, wider not in lines."""


class Output(StrEnum):
    """What to print."""

    PAGE = "page"
    JSON = "json"


def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Job; by default the latest local one.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="A page, or the object.")] = Output.PAGE,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a job on one page: progress, attempts, failure, results.

    A local run of that name wins; without one, or with --namespace, --context or --kubeconfig, it is the job of a
    cluster.

    Exit status: 0 shown, whatever the job's phase; 66 no such job, 69 cluster unreachable, 77 not permitted, 78 no
    kubeconfig, context or CRD.
    """
    event_loop.run(_show(Places(work_dir, ClusterAccess(namespace, context, kubeconfig)), name, output))


async def _show(places: Places, name: str | None, output: Output) -> None:
    async with places.open(name) as place:
        manifest = await place.read()
        if output is Output.JSON:
            say(json.dumps(_readable(manifest), indent=2, ensure_ascii=False))
            return
        page = await _page(place, manifest)
    say("\n".join(page.lines()))


async def _page(place: JobPlace, manifest: Manifest) -> Page:
    columns = shutil.get_terminal_size().columns
    return Page(
        job=lenient_job(manifest),
        where=place.where,
        events=await place.events(),
        now=utc_now(),
        width=max(_WIDTHS[0], min(columns, _WIDTHS[1])),
        is_left=place.is_left(),
    )


def _readable(manifest: Manifest) -> Manifest:
    """Return the object without managedFields, as kubectl prints it."""
    metadata = {field: value for field, value in manifest["metadata"].items() if field != "managedFields"}
    return {**manifest, "metadata": metadata}
