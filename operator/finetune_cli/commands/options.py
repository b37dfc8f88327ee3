"""Options that several commands use."""

from pathlib import Path
from typing import Annotated

import typer

from ..display import DisplayMode
from ..job_sources import DEFAULT_WORK_DIR

__all__ = [
    "DEFAULT_WORK_DIR",
    "Context",
    "Endpoint",
    "JobFiles",
    "JobPath",
    "Kubeconfig",
    "Namespace",
    "WatchMode",
    "WorkDir",
]

WorkDir = Annotated[
    Path,
    typer.Option("--work-dir", metavar="DIR", help="Folder for runs, logs, caches and the embedded object store."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="External S3 endpoint instead of the embedded server; credentials are read from AWS_* variables.",
    ),
]
JobFiles = Annotated[list[Path], typer.Argument(metavar="FILE", help="Job files.", show_default=False)]
JobPath = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)]

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NS", help="Use a cluster: namespace; defaults to that of the context."),
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="Use a cluster: context of the kubeconfig.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig", metavar="FILE", help="Use a cluster: kubeconfig instead of KUBECONFIG and ~/.kube/config."
    ),
]
WatchMode = Annotated[
    DisplayMode | None,
    typer.Option(
        "--output", "-o", help="Output format; defaults to rich on a terminal, else to plain.", show_default=False
    ),
]
