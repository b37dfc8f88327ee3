"""`finetune checkpoints list|verify|prune|export`."""

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_api.clock import utc_now

from ..cluster.jobs import ClusterAccess
from ..display.checkpoints import as_json, table, verification_line
from ..display.text import size
from ..exit_status import FAILED, USAGE, CommandError
from ..job_sources import JobSources
from ..stored_runs import StoredRun, stored_run
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Context, Endpoint, Kubeconfig, Namespace, WorkDir

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.checkpoint.archive import Keep, Pruned

app = typer.Typer(help="List, verify, prune and export the checkpoints of a run.", no_args_is_help=True)

_NARROWEST = 80

Where = Annotated[
    str,
    typer.Argument(
        metavar="JOB[:NUMBER]|s3://BUCKET/KEY",
        help="Local job or job in a cluster, with :NUMBER for an earlier run, or address of the folder of a run.",
        show_default=False,
    ),
]


class Output(StrEnum):
    """Output format."""

    TABLE = "table"
    JSON = "json"


@app.command(name="list")
def list_(
    where: Where,
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TABLE,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List the checkpoints of a run, in restore order.

    Exit status: 0 success, 1 there are none, 66 no such run, 69 storage or cluster unreachable, 77 access denied, 78
    no kubeconfig or context.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    with stored_run(where, sources, endpoint) as run:
        entries = run.entries()
    if output is Output.JSON:
        echo(json.dumps([as_json(entry) for entry in entries], indent=2))
        return
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    echo("\n".join(table(entries, now=utc_now(), width=width)))


@app.command()
def verify(
    where: Where,
    step: Annotated[int | None, typer.Option(metavar="N", help="Only checkpoints of this step.", min=0)] = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Read all blobs of checkpoints and compare their digests.

    Exit status: 0 all are intact, 1 one is damaged or there are none, 66 no such run, 69 storage or cluster
    unreachable, 77 access denied, 78 no kubeconfig or context.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    with stored_run(where, sources, endpoint) as run:
        is_damaged = False
        for checked in run.archive.check(run.entries(step)):
            echo(verification_line(checked))
            is_damaged |= bool(checked.damages)
    if is_damaged:
        raise typer.Exit(FAILED)


@app.command()
def prune(
    where: Where,
    *,
    keep_last: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the N newest; defaults to the setting of the job.", min=1)
    ] = None,
    keep_best: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep the N newest best; defaults to the setting of the job.", min=0),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(metavar="S", help="Keep the first of every S steps; defaults to the setting of the job.", min=1),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm that no attempt of this run is running.")] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Remove checkpoints and the blobs that only they refer to.

    Training prunes checkpoints according to spec.checkpoint; this command is for runs that have ended. Checkpoints
    that early stopping may export are kept. In shared storage, blobs are removed only if nothing was written for an
    hour, so that a save in progress is not damaged.

    Exit status: 0 success, 1 the run is active or has no checkpoints, 2 --yes is required, 66 no such run, 69
    storage or cluster unreachable, 77 access denied, 78 no kubeconfig or context.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    with stored_run(where, sources, endpoint, exclusive=not dry_run) as run:
        if run.address.busy_reason and not (dry_run or yes):
            raise CommandError(
                f"{run.address.busy_reason}, and pruning could damage the checkpoint that it is saving; "
                "add --yes to confirm that no attempt is running, or --dry-run",
                USAGE,
            )
        before = len(run.entries())
        pruned = run.archive.prune(
            _keep(run, keep_last, keep_best, keep_every), is_idle=run.address.is_local, dry_run=dry_run
        )
    for line in _prune_lines(pruned, before, "would be removed" if dry_run else "removed"):
        echo(line)


def _keep(run: StoredRun, last: int | None, best: int | None, every: int | None) -> "Keep":
    from finetune_trainer.checkpoint.archive import Keep

    options = {"last": last, "best": best, "every": every}
    given = {name: value for name, value in options.items() if value is not None}
    return Keep.of(run.address.checkpoint).model_copy(update=given)


def _prune_lines(pruned: "Pruned", before: int, what: str) -> list[str]:
    lines = [f"{name}: {what}" for name in pruned.checkpoints]
    count = len(pruned.checkpoints)
    lines.append(f"{count} of {before} checkpoints and {pruned.blobs} blobs, {size(pruned.bytes)}, {what}")
    if pruned.blocked_by:
        lines.append(f"no blobs were removed: {pruned.blocked_by}")
    return lines


@app.command()
def export(
    where: Where,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder.", show_default=False)],
    step: Annotated[
        int | None,
        typer.Option(metavar="N", help="Step; defaults to the checkpoint that a restart tries.", min=0),
    ] = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Write all trained parameters of a checkpoint as safetensors.

    Values are fp32. Names are those of the model in training; with an adapter method, only the adapter is written.
    Files are up to 1 GiB, and model.safetensors.index.json maps names to files. Memory holds one file and a few blobs
    at a time.

    Exit status: 0 success, 1 no such checkpoint, 2 the folder is not empty, 66 no such run, 69 storage or cluster
    unreachable, 70 the checkpoint is damaged or the disk is full, 77 access denied, 78 no kubeconfig or context.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{folder} must be an empty folder; write the path of a new one", USAGE)
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    with stored_run(where, sources, endpoint) as run:
        for path in run.archive.export(run.entries(step)[0], folder):
            echo(path)
