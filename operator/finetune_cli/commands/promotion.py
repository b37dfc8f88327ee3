"""`finetune promote`, `rollback` and `promoted`: the promoted model of an output."""

import getpass
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_api.run_layout import PromotionLayout

from ..cluster.jobs import ClusterAccess
from ..display.promotion import change_lines, record_lines
from ..exit_status import USAGE, CommandError
from ..job_sources import JobSources
from ..stored_runs import Address, address_of, opened_storage
from ..terminal import echo
from .checkpoints import Output, Where
from .options import DEFAULT_WORK_DIR, Context, Endpoint, Kubeconfig, Namespace, WorkDir

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.promotion.by_hand import Change, Promotions

_MAX_PERSON = 128

OutputOf = Annotated[
    str,
    typer.Argument(
        metavar="JOB|s3://BUCKET/KEY",
        help="Local job, job in a cluster, or address in spec.output.uri.",
        show_default=False,
    ),
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for promoted.json.")]


def promote(
    where: Where,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the model although its evaluation has refused it.")
    ] = False,
    reason: Reason = "",
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Promote the model of a run.

    The folder promoted/ of the output gets the content of this model. All bytes of the model are read and compared with
    the digest of its evaluation. If the model is promoted already, its files are completed.

    Exit status: 0 success, 1 refused, or another promotion at the same time, 66 no such job, 69 storage or cluster
    unreachable, 77 access denied, 78 no evaluation, no complete model, or another digest.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    address = address_of(where, sources, endpoint)
    layout = PromotionLayout.of_run(address.uri)
    if layout is None:
        raise CommandError(f"{address.uri} must be the folder of a run: s3://BUCKET/.../runs/r0001-...", USAGE)
    with _promotions(address, layout, sources) as promotions:
        change = promotions.promote(address.uri, reason=reason, force=force)
    _show(change, layout)


def rollback(
    where: OutputOf,
    *,
    reason: Reason = "",
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Promote the previous model of an output again.

    The run that is rolled back is not promoted again by another evaluation, only by finetune promote --force.

    Exit status: 0 success, 1 there is no previous model, or another promotion at the same time, 66 no such job, 69
    storage or cluster unreachable, 77 access denied, 78 the model is missing or has another digest.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    address, layout = _output(where, sources, endpoint)
    with _promotions(address, layout, sources) as promotions:
        change = promotions.roll_back(reason=reason)
    _show(change, layout)


def promoted(
    where: OutputOf,
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TABLE,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show which model of an output is promoted, and why.

    Also shows the models that were promoted before.

    Exit status: 0 success, 1 no model is promoted, 66 no such job, 69 storage or cluster unreachable, 77 access denied.
    """
    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    address, layout = _output(where, sources, endpoint)
    with _promotions(address, layout, sources) as promotions:
        record = promotions.current()
    if record is None:
        raise CommandError(f"no model is promoted in {layout.output_uri}")
    if output is Output.JSON:
        echo(json.dumps(record.model_dump(mode="json"), indent=2))
        return
    echo("\n".join(record_lines(record)))


def _show(change: "Change", layout: PromotionLayout) -> None:
    echo("\n".join(change_lines(change, layout)))
    if change.warning:
        echo(f"warning: {change.warning}", file=sys.stderr)


def _output(where: str, sources: JobSources, endpoint: str | None) -> tuple[Address, PromotionLayout]:
    """Resolve a job, the address of an output, or that of one of its runs."""
    address = address_of(where, sources, endpoint)
    return address, PromotionLayout.of_run(address.uri) or PromotionLayout.of(address.uri)


@contextmanager
def _promotions(address: Address, layout: PromotionLayout, sources: JobSources) -> Iterator["Promotions"]:
    from finetune_trainer.promotion.by_hand import Promotions, RefusedError

    with opened_storage(address, sources) as store:
        try:
            yield Promotions(store, layout, person=_person(), tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""))
        except RefusedError as error:
            raise CommandError(str(error)) from None


def _person() -> str:
    """Return the user's name, or the user id if it has none, as in a container."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return re.sub(r"[^\w.@ -]", "?", name)[:_MAX_PERSON]
