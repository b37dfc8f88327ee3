"""Addresses in object storage, which operator, trainer and command line derive in the same way. Pure.

<output>/datasets/<digest>/       prepared data sets, shared by the runs of an output
<output>/models/<digest>/         copies of base models, shared by the runs of an output
<output>/runs/r0001-1f3a9c42/     one run, see `RunLayout`
"""

import re
from dataclasses import dataclass
from typing import Self

from .v1alpha1 import ArtifactFormat

_INSIDE_CHECKPOINTS = re.compile(r"/checkpoints(/(manifests|blobs)(/[^/]*)?)?/?$")
_FOLDERS = {ArtifactFormat.MERGED: "model", ArtifactFormat.ADAPTER: "adapter"}


def dataset_folder(output_uri: str, digest: str) -> str:
    """Folder of a prepared data set."""
    return f"{output_uri.rstrip('/')}/datasets/{digest}"


def base_model_folder(output_uri: str, digest: str) -> str:
    """Folder of the copy of a base model."""
    return f"{output_uri.rstrip('/')}/models/{digest}"


@dataclass(frozen=True)
class RunLayout:
    """The addresses of one run."""

    uri: str
    """Folder of the run, without a slash at the end."""

    @classmethod
    def of(cls, output_uri: str, run: int, uid: str) -> Self:
        """`<output>/runs/r0001-1f3a9c42`.

        It contains a part of the object's UID, so that a job that is deleted and created again, or a second job with
        the same output, never reads or overwrites the objects of the first.
        """
        return cls(f"{output_uri.rstrip('/')}/runs/{run_name(run)}-{uid[:8]}")

    @classmethod
    def containing(cls, uri: str) -> Self:
        """Return the run that contains `uri`, the address of its folder, checkpoint folders, manifests or blobs."""
        return cls(_INSIDE_CHECKPOINTS.sub("", uri).rstrip("/"))

    @property
    def record(self) -> str:
        """The run record: spec, digests and versions. Written by the prepare stage."""
        return f"{self.uri}/run.json"

    @property
    def checkpoints(self) -> str:
        """Folder with manifests and blobs of checkpoints."""
        return f"{self.uri}/checkpoints"

    @property
    def manifests(self) -> str:
        """Folder of the manifests, one for each committed checkpoint."""
        return f"{self.checkpoints}/manifests"

    @property
    def blobs(self) -> str:
        """Folder of the blobs that manifests refer to."""
        return f"{self.checkpoints}/blobs"

    @property
    def claims(self) -> str:
        """Folder with one object for each attempt that has claimed the run."""
        return f"{self.uri}/attempts"

    def artifact(self, artifact: ArtifactFormat) -> str:
        """Folder of the exported model in one format."""
        return f"{self.uri}/{_FOLDERS[artifact]}"

    @property
    def training_log(self) -> str:
        """Losses, learning rates, validations and warnings."""
        return f"{self.uri}/training.json"

    @property
    def reference(self) -> str:
        """Losses of the trained model on a few rows. Outside the exported folders, whose digests it must not change."""
        return f"{self.uri}/reference.json"

    @property
    def evaluation(self) -> str:
        """All metrics of the report."""
        return f"{self.uri}/evaluation.json"

    @property
    def report(self) -> str:
        """The report as one HTML file."""
        return f"{self.uri}/report.html"


def run_name(run: int) -> str:
    """`r0001`."""
    return f"r{run:04d}"
