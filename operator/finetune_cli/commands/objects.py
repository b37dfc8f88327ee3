"""`finetune validate`, `render`, `crd` and `version`: commands that run nothing."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import typer

from finetune_api.constants import API_VERSION
from finetune_api.crd import crd as crd_manifest
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from finetune_operator.yaml_text import dump_all

from ..exit_status import of_error
from ..job_file import JobFile, JobFileError, read_job_file
from ..terminal import echo
from .options import JobFiles, JobPath

_DISTRIBUTION = "finetune-operator"


def validate(files: JobFiles) -> None:
    """Check job files and print all mistakes, each with its line.

    Exit status: 0 all are valid, 65 a job is invalid, 66 a file is missing.
    """
    worst = 0
    for path in files:
        try:
            job_file = read_job_file(path)
            job_file.check(local=True)
        except JobFileError as error:
            echo(error, file=sys.stderr)
            worst = max(worst, of_error(error))
            continue
        echo(f"{path}: valid")
        notes = (_note(job_file, local=False), _note(job_file, local=True, for_run=True))
        echo("".join(notes), end="")
    raise typer.Exit(worst)


def _note(job_file: JobFile, *, local: bool, for_run: bool = False) -> str:
    """Return notes on why a valid job does not work in a cluster, or with `finetune run`."""
    try:
        job_file.check(local=local, for_run=for_run)
    except JobFileError as error:
        return "".join(f"note: {line}\n" for line in str(error).splitlines())
    return ""


def render(job: JobPath) -> None:
    """Print the manifests that the operator would create."""
    checked = read_job_file(job).check(local=False)
    echo(dump_all(render_all(checked, OperatorSettings())), end="")


def crd() -> None:
    """Print the CustomResourceDefinition of FineTuneJob."""
    echo(dump_all([crd_manifest()]), end="")


def show_version() -> None:
    """Print the versions of this command, its API and Python."""
    try:
        own = version(_DISTRIBUTION)
    except PackageNotFoundError:
        own = "(not installed)"
    echo(f"{_DISTRIBUTION} {own}, {API_VERSION}, Python {platform.python_version()}")
