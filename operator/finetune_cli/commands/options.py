"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

WorkDir = Annotated[
    Path,
    typer.Option("--work-dir", metavar="DIR", help="Folder for runs, logs, caches and the embedded object store."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Your own S3 instead of the embedded one; credentials come from AWS_* variables.",
    ),
]
JobFiles = Annotated[list[Path], typer.Argument(metavar="FILE", help="Job files.", show_default=False)]
JobPath = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)]

DEFAULT_WORK_DIR = Path(".finetune")
