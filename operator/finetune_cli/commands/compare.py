"""`finetune compare`: what differs between runs."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_api.files import replace_file

from ..cluster.jobs import ClusterAccess
from ..display.comparison import comparison_lines
from ..exit_status import USAGE, CommandError
from ..job_sources import JobSources
from ..stored_runs import address_of, opened_storage
from ..terminal import echo
from .checkpoints import Output
from .options import DEFAULT_WORK_DIR, Context, Endpoint, Kubeconfig, Namespace, WorkDir

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.evaluate.run_comparison import StoredDocuments

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN",
        help="Two to eight of: JOB for its current run, JOB:NUMBER, or s3://BUCKET/KEY of the folder of a run.",
        show_default=False,
    ),
]


def compare(
    runs: Runs,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with charts of all curves.")
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TABLE,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what differs between runs.

    Compares spec, data, metrics of the test split, trained parameters, cost and curves. Of runs of different tasks,
    only the metrics and curves that all of them have are compared.

    Exit status: 0 success, 2 the number of runs is wrong, 66 no such job or run, 69 storage or cluster unreachable, 70
    a document of a run cannot be read, 77 access denied, 78 there is no run at an address, or no kubeconfig or context.
    """
    from finetune_trainer.evaluate.run_comparison import MAX_RUNS, compare_runs, curve_title

    if not 2 <= len(runs) <= MAX_RUNS:
        raise CommandError(f"the number of runs must be 2 to {MAX_RUNS}, not {len(runs)}", USAGE)
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    comparison = compare_runs(_documents(runs, sources, endpoint))
    if html is not None:
        from finetune_trainer.evaluate.run_comparison_page import render_comparison

        _write(html, render_comparison(comparison))
    if output is Output.JSON:
        echo(json.dumps(json.loads(comparison.model_dump_json(by_alias=True)), indent=2))
        return
    echo("\n".join(comparison_lines(comparison, {name: curve_title(name) for name in comparison.curves})))


def _documents(runs: list[str], sources: JobSources, endpoint: str | None) -> "list[StoredDocuments]":
    """Read all runs. Runs of one storage are read through one connection."""
    from finetune_trainer.evaluate.run_comparison import read_run

    addresses = [(name, address_of(name, sources, endpoint)) for name in runs]
    found: dict[int, StoredDocuments] = {}
    # The embedded store is last, because its credentials replace those of the environment.
    for storage in sorted({address.storage for _, address in addresses}, key=lambda one: one is None):
        with ExitStack() as held:
            mine = [index for index, (_, address) in enumerate(addresses) if address.storage == storage]
            store = held.enter_context(opened_storage(addresses[mine[0]][1], sources))
            for index in mine:
                name, address = addresses[index]
                found[index] = read_run(store, address.uri, name=name, cost=address.cost)
    return [found[index] for index in range(len(runs))]


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", USAGE) from None
