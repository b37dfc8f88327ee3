"""`finetune lm-eval`: the test split of a run as a task for lm-evaluation-harness."""

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..cluster.jobs import ClusterAccess
from ..exit_status import USAGE, CommandError
from ..job_sources import JobSources
from ..stored_runs import Address, address_of, opened_storage
from ..terminal import echo
from .checkpoints import Where
from .demo import command_name
from .options import DEFAULT_WORK_DIR, Context, Endpoint, Kubeconfig, Namespace, WorkDir

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.evaluate.lm_eval import WrittenTask


def lm_eval(
    where: Where,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder.", show_default=False)],
    *,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip", help="Leave out rows that cannot be written as text; the results will differ from the report."
        ),
    ] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Export the test split of a run as a task for lm-eval.

    For the exported model of the run, lm-evaluation-harness reports the same loss and perplexity as the run's report.
    Prints the commands that download the model and evaluate it.

    Exit status: 0 success, 2 the folder is not empty, 65 rows cannot be written as text, 66 no such job, 69 storage or
    cluster unreachable, 77 access denied, 78 the run was not evaluated, or has no merged language model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{folder} must be an empty folder; write the path of a new one", USAGE)
    from finetune_trainer.evaluate.lm_eval import write_task

    sources = JobSources(work_dir, ClusterAccess(namespace, context, kubeconfig))
    address = address_of(where, sources, endpoint)
    with opened_storage(address, sources) as store, tempfile.TemporaryDirectory() as scratch:
        written = write_task(store, address.uri, folder, Path(scratch), skip=skip)
    echo("\n".join(_lines(written, folder, storage_options(address, work_dir))))


def storage_options(address: Address, work_dir: Path) -> str:
    """Options with which `finetune store` reads the storage of the run, each after a space."""
    if address.storage is None:
        return "" if work_dir == DEFAULT_WORK_DIR else f" --work-dir {shlex.quote(str(work_dir))}"
    endpoint = address.storage.endpoint or f"https://s3.{address.storage.region}.amazonaws.com"
    return f" --endpoint {shlex.quote(endpoint)}"


def _lines(written: "WrittenTask", folder: Path, storage_options: str) -> list[str]:
    left_out = sum(written.left_out.values())
    return [
        f"{written.path}: task {written.name}, {written.answers:,} answers in {written.rows - left_out:,} rows",
        *(f"left out: {count:,} rows: {reason}" for reason, count in written.left_out.items()),
        f"report of the run: loss {written.loss:.6f}, perplexity {written.perplexity:.6g}, {written.tokens:,} tokens",
        f"model: {written.model_uri}/",
        "to evaluate it with lm-eval, download it into a folder MODEL:",
        f"{command_name()} store get {written.model_uri}/ MODEL{storage_options}",
        f"lm_eval run --model hf --model_args pretrained=MODEL,{written.model_args} \\",
        f"    --tasks {written.name} --include_path {shlex.quote(str(folder))}",
    ]
