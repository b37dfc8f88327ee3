"""`finetune init`: write a first job for a data file and a model."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from finetune_api.constants import API_VERSION, KIND
from finetune_api.validation import InvalidJobError, parse_job

from ..exit_status import USAGE, CommandError
from ..first_job import job_text
from ..job_file import read_job_file
from ..local.storage import shared_storage
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Endpoint, WorkDir


def init(
    data: Annotated[str, typer.Option("--data", metavar="FILE|URI", help="Data file to train on.", show_default=False)],
    model: Annotated[str, typer.Option("--model", metavar="FOLDER|URI", help="Base model.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="New job file.")] = Path("job.yaml"),
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="FIELD=COLUMN", help="Column of a field, as in spec.data.columns."),
    ] = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Write a first job for a data file and a model.

    Reads the first records and the model, and chooses format, columns, maxLength, method, learning rate and batch size,
    with a comment for each choice. The model is downloaded into the cache that finetune run uses.

    Exit status: 0 success, 2 the command line is wrong or the job file exists, 65 the data cannot be used, 66 the model
    is missing or cannot be used, 69 storage or hub unreachable, 77 access denied.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed searches for one, and warns if there is none
    from finetune_trainer.data.first_look import look_at

    if output.exists():
        raise CommandError(f"{output} exists; name another file with -o", USAGE)
    columns = dict(_pair(text) for text in column or ())
    data_uri, model_uri = _uri(data), _uri(model)
    _check(data_uri, model_uri)
    cache = work_dir / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        store = None
        if any(uri.startswith("s3://") for uri in (data_uri, model_uri)):
            store = held.enter_context(shared_storage(work_dir, endpoint)).connect()
        look = look_at(data_uri, model_uri, columns, store, cache)
    try:
        output.write_text(job_text(look, data=data_uri, model=model_uri), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}", USAGE) from None
    read_job_file(output).check(local=True)
    echo(f"{output}: {look.format}, {look.records:,} records read; run `finetune run {output}`")


def _check(data: str, model: str) -> None:
    """Raise CommandError if the addresses cannot be those of a job."""
    spec = {
        "model": {"uri": model},
        "data": {"train": [{"uri": data}]},
        "training": {"learningRate": 1e-4},
        "output": {"uri": "s3://finetune/runs"},
    }
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "job"}, "spec": spec}
    try:
        parse_job(manifest, local=True)
    except InvalidJobError as error:
        raise CommandError("\n".join(map(str, error.violations)), USAGE) from None


def _uri(text: str) -> str:
    """Return the address of a local path; other addresses unchanged."""
    return text if "://" in text else f"file://{Path(text).absolute()}"


def _pair(text: str) -> tuple[str, str]:
    field, separator, column = text.partition("=")
    if not (field and separator and column):
        raise CommandError(f"--column must be FIELD=COLUMN, not {text}", USAGE)
    return field, column
