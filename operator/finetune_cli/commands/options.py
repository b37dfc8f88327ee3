"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..display import Watch
from ..places import DEFAULT_WORK_DIR

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
        help="External S3 endpoint instead of the embedded server, with credentials from AWS_* variables.",
    ),
]
JobFiles = Annotated[list[Path], typer.Argument(metavar="FILE", help="Job files.", show_default=False)]
JobPath = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)]

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NS", help="In a cluster, in this namespace; else that of the context."),
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="In a cluster: context of the kubeconfig.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", metavar="FILE", help="In a cluster: instead of KUBECONFIG and ~/.kube/config."),
]
WatchMode = Annotated[
    Watch | None,
    typer.Option("--watch", help="How to show it; rich on a terminal, plain elsewhere.", show_default=False),
]
