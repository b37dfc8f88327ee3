"""What an export format with quantized weights must define. Imports torch."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat, CandidateName, Spec

from ...registry import Registry
from ...store.client import ObjectStore
from ..weights import WeightPlan


class QuantizedExport(ABC):
    """One export of a format: its folder, or one of several files in the folder."""

    artifact: ClassVar[ArtifactFormat]
    """The format."""

    @property
    @abstractmethod
    def candidate(self) -> CandidateName:
        """Name in the status."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name in report, log and messages: `Int8`, `GGUF Q8_0`."""

    @property
    @abstractmethod
    def accepted(self) -> float:
        """Accepted mean difference of the loss per row, relative to the mean loss, or to 1 nat if that is smaller.

        Wide, because the loss depends on model and data: faults of a file are found by the comparison of its weights.
        """

    @property
    def file(self) -> str | None:
        """Name of the file in the folder of the format. None: the whole folder is the export."""
        return None

    def uri(self, config: PreparedConfig) -> str:
        """Address of the folder or file."""
        folder = config.layout.artifact(self.artifact)
        return folder if self.file is None else f"{folder}/{self.file}"

    def path(self, folder: Path) -> Path:
        """The export in a local copy of the folder of the format."""
        return folder if self.file is None else folder / self.file

    @abstractmethod
    def reload(self, folder: Path, uri: str, prepared: Prepared, device: str) -> Any:
        """Load it on a device, in evaluation mode. Raises ExportUnusableError."""

    @abstractmethod
    def check(self, model: Any, source: Path, folder: Path, uri: str, texts: tuple[str, ...]) -> None:
        """Compare the reloaded model, and on `texts` the tokenizer if the format has its own, with the complete model
        in the folder `source`.

        Raises ExportUnusableError.
        """


class QuantizedFormat(ABC):
    """A value of `spec.output.formats` whose weights are quantized."""

    name: ClassVar[ArtifactFormat]

    @abstractmethod
    def exports(self, spec: Spec) -> tuple[QuantizedExport, ...]:
        """The exports that a spec with this format requests."""

    def last_files(self, spec: Spec) -> tuple[str, ...]:
        """The files that are uploaded last: a folder without one of them is incomplete."""
        return ("config.json",)

    def is_current(self, spec: Spec, uri: str, store: ObjectStore) -> bool:
        """Whether the complete folder at `uri` is what the spec requests."""
        return True

    @abstractmethod
    def check_base(self, spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
        """Raise BadConfigError if the format cannot hold the base model in `folder`."""

    @abstractmethod
    def write(self, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path) -> None:
        """Write the complete model of the folder `source`.

        Raises BadConfigError if the format cannot hold it: a format may be added after the prepare stage.
        """


QUANTIZED_FORMATS: Registry[QuantizedFormat] = Registry(__package__, "spec.output.formats")


def quantized_exports(spec: Spec) -> tuple[QuantizedExport, ...]:
    """The exports with quantized weights that the spec requests."""
    return tuple(export for artifact in _formats(spec) for export in QUANTIZED_FORMATS[artifact].exports(spec))


def check_quantized_exports(spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
    """Raise BadConfigError if the base model cannot be exported in a format of the spec."""
    for artifact in _formats(spec):
        QUANTIZED_FORMATS[artifact].check_base(spec, folder, plan, scratch)


def write_quantized(
    artifact: ArtifactFormat, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path
) -> None:
    """Write the complete model of the folder `source` in one format.

    Raises BadConfigError if the format cannot hold the model.
    """
    QUANTIZED_FORMATS[artifact].write(source, folder, config, scratch=scratch)


def _formats(spec: Spec) -> tuple[ArtifactFormat, ...]:
    """In the order of the API, so that the order in the spec does not matter."""
    return tuple(artifact for artifact in ArtifactFormat if artifact.is_quantized and artifact in spec.output.formats)
