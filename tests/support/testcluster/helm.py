"""The real helm on the chart."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .daemons import TAIL
from .images import ROOT

CHART = ROOT / "charts/finetune-operator"
RELEASE = "finetune-operator"

Values = Mapping[str, Any]
Rendered = dict[tuple[str, str], dict[str, Any]]
"""(kind, name) -> manifest."""


class HelmError(AssertionError):
    """helm did not exit with 0. `stderr` is what it said."""

    def __init__(self, command: Iterable[str], status: int, stderr: str) -> None:
        super().__init__(f"helm {' '.join(command)}: exit status {status}\n{stderr[-TAIL:]}")
        self.stderr = stderr


@dataclass(frozen=True)
class Helm:
    """`helm("lint", CHART)`: the text that it printed, or HelmError."""

    program: Path
    home: Path
    """What it keeps. Not in the home of the user who runs the tests."""
    kubeconfig: Path | None = None
    namespace: str = "finetune-system"

    def on(self, kubeconfig: Path, namespace: str) -> "Helm":
        return replace(self, kubeconfig=kubeconfig, namespace=namespace)

    def __call__(self, *arguments: str | Path, stdin: str | None = None, within: float = 120) -> str:
        folders = {f"HELM_{name}_HOME": str(self.home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        # Without a kubeconfig no cluster is asked, not even one that this machine's user has.
        cluster = {"KUBECONFIG": str(self.kubeconfig or os.devnull)}
        command = [str(self.program), "--namespace", self.namespace, *map(str, arguments)]
        done = subprocess.run(
            command,
            input=stdin,
            env=dict(os.environ) | folders | cluster,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        if done.returncode != 0:
            raise HelmError(command[1:], done.returncode, done.stderr)
        return done.stdout

    def with_values(self, *arguments: str | Path, values: Values, within: float = 120) -> str:
        """A command that takes values."""
        return self(*arguments, "--values", "-", stdin=json.dumps(values), within=within)

    def render(self, values: Values, release: str = RELEASE, chart: Path = CHART) -> Rendered:
        """The objects of a release with these values; a name that occurs twice is an error."""
        text = self.with_values("template", release, chart, values=values)
        # In C: the CRD takes a reader in Python half a second.
        manifests = [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one is not None]
        found = {(one["kind"], _name(one["metadata"])): one for one in manifests}
        assert len(found) == len(manifests), "an object is rendered twice"
        return found


def _name(metadata: Mapping[str, Any]) -> str:
    """`name`, or `namespace/name` where the namespace is not that of the release."""
    namespace = metadata.get("namespace", "finetune-system")
    return str(metadata["name"] if namespace == "finetune-system" else f"{namespace}/{metadata['name']}")
