"""Addresses in object storage, which operator, trainer and command line derive in the same way. Pure.

<output>/datasets/<digest>/       prepared datasets, shared by the runs of an output
<output>/models/<digest>/         copies of base models, shared by the runs of an output
<output>/runs/r0001-1f3a9c42/     one run, see `RunLayout`
<output>/promoted.json            the promoted model, shared by the runs of an output, see `PromotionLayout`
<output>/promoted/                its files
"""

import re
from dataclasses import dataclass
from typing import Self

from .v1alpha1 import ArtifactFormat, GgufType

_INSIDE_CHECKPOINTS = re.compile(r"/checkpoints(/(manifests|blobs)(/[^/]*)?)?/?$")
_RUN_FOLDER = re.compile(r"(s3://.+)/runs/r[0-9]{4,}-[^/]+")
_FOLDERS = {
    ArtifactFormat.MERGED: "model",
    ArtifactFormat.ADAPTER: "adapter",
    ArtifactFormat.INT8: "int8",
    ArtifactFormat.GGUF: "gguf",
    ArtifactFormat.COMPRESSED_TENSORS: "compressed-tensors",
}

PROMOTION_MARKER = "promotion.json"


def dataset_folder(output_uri: str, digest: str) -> str:
    """Folder of a prepared dataset."""
    return f"{output_uri.rstrip('/')}/datasets/{digest}"


def base_model_folder(output_uri: str, digest: str) -> str:
    """Folder of the copy of a base model."""
    return f"{output_uri.rstrip('/')}/models/{digest}"


def gguf_file(kind: GgufType) -> str:
    """Name of a GGUF file in its folder: `model-Q8_0.gguf`."""
    return f"model-{kind}.gguf"


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

    @property
    def learning_rate(self) -> str:
        """The learning rate that was chosen because `spec.training.learningRate` is absent, and how."""
        return f"{self.uri}/learning-rate.json"

    def micro_batch(self, settings: str) -> str:
        """The micro-batch size that was measured for these settings; `settings` is a digest."""
        return f"{self.uri}/micro-batch-{settings}.json"

    def micro_batch_attempt(self, settings: str) -> str:
        """The attempt that has begun this measurement. Without a result beside it, it did not end."""
        return f"{self.uri}/micro-batch-{settings}-begun.json"

    def artifact(self, artifact: ArtifactFormat) -> str:
        """Folder of the exported model in one format."""
        return f"{self.uri}/{_FOLDERS[artifact]}"

    def gguf(self, kind: GgufType) -> str:
        """File of the exported model in one type of the format GGUF."""
        return f"{self.artifact(ArtifactFormat.GGUF)}/{gguf_file(kind)}"

    @property
    def training_log(self) -> str:
        """Losses, learning rates, validations and warnings."""
        return f"{self.uri}/training.json"

    @property
    def pruning(self) -> str:
        """What `spec.method.full.pruning` removes from the base model, with the digest of the masks."""
        return f"{self.uri}/pruning.json"

    def pruning_masks(self, digest: str) -> str:
        """The masks with this SHA-256: which weights are zero."""
        return f"{self.uri}/pruning/{digest}.safetensors"

    @property
    def initial_weights(self) -> str:
        """The digest of the values that an adapter begins with, if they are computed from the base model."""
        return f"{self.uri}/initial-weights.json"

    def initial_weights_file(self, digest: str) -> str:
        """The values with this SHA-256."""
        return f"{self.uri}/initial-weights/{digest}.safetensors"

    @property
    def tensorboard(self) -> str:
        """Folder with the event files of `spec.tracking.tensorBoard`."""
        return f"{self.uri}/tensorboard"

    @property
    def wandb(self) -> str:
        """Folder with the files of `spec.tracking.wandb` for `wandb sync`."""
        return f"{self.uri}/wandb"

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


@dataclass(frozen=True)
class PromotionLayout:
    """The addresses of the promoted model of an output."""

    output_uri: str
    """`spec.output.uri` without a slash at the end."""

    @classmethod
    def of(cls, output_uri: str) -> Self:
        """Return the layout of `spec.output.uri`."""
        return cls(output_uri.rstrip("/"))

    @classmethod
    def of_run(cls, run_uri: str) -> Self | None:
        """Return the layout of the output that contains a run; None if the address is not that of a run's folder."""
        match = _RUN_FOLDER.fullmatch(run_uri.rstrip("/"))
        return None if match is None else cls(match[1])

    @property
    def record(self) -> str:
        """Which model is promoted, why, and which models were promoted before."""
        return f"{self.output_uri}/promoted.json"

    @property
    def folder(self) -> str:
        """Files of the promoted model, in Hugging Face layout."""
        return f"{self.output_uri}/promoted"

    @property
    def marker(self) -> str:
        """Object in that folder that names its model. It exists only while all files are those of this model."""
        return f"{self.folder}/{PROMOTION_MARKER}"

    @property
    def sequence(self) -> str:
        """Folder with the order of promotions, if storage has no conditional writes."""
        return f"{self.output_uri}/promotions"


def run_name(run: int) -> str:
    """`r0001`."""
    return f"r{run:04d}"
