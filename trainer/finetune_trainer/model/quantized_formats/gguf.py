"""GGUF: a folder of files for llama.cpp. The package gguf is imported when it is used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import GgufConfig

from finetune_api.run_layout import gguf_file
from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat, CandidateName, GgufType, Spec

from ..reload import reload_model
from ..stored_weights import check_weights
from ..weights import WeightPlan
from .base import QUANTIZED_FORMATS, QuantizedExport, QuantizedFormat

_ACCEPTED = {
    GgufType.F16: 0.01,
    GgufType.BF16: 0.05,
    GgufType.Q8_0: 0.05,
    GgufType.Q5_0: 0.2,
    GgufType.Q4_0: 0.5,
}


@dataclass(frozen=True)
class GgufExport(QuantizedExport):
    """A file of one type."""

    artifact: ClassVar = ArtifactFormat.GGUF
    kind: GgufType

    @property
    def candidate(self) -> CandidateName:
        """One for each type."""
        return CandidateName.of_gguf(self.kind)

    @property
    def title(self) -> str:
        """`GGUF Q8_0`."""
        return f"{self.artifact} {self.kind}"

    @property
    def accepted(self) -> float:
        """By the number of bits."""
        return _ACCEPTED[self.kind]

    @property
    def file(self) -> str:
        """`model-Q8_0.gguf`."""
        return gguf_file(self.kind)

    def reload(self, folder: Path, uri: str, prepared: Prepared, device: str) -> Any:
        """With transformers, which dequantizes it."""
        dequantized = GgufConfig(dequantize=True)
        model = reload_model(folder, uri, prepared, gguf_file=self.file, quantization_config=dequantized)
        return model.to(device).eval()

    def check(self, model: Any, source: Path, folder: Path, uri: str, texts: tuple[str, ...]) -> None:
        """The file has its own tokenizer."""
        from ..gguf_files import check_tokenizer, values_in

        check_weights(model, source, uri, values_in(self.kind))
        check_tokenizer(source, folder / self.file, uri, texts)


@QUANTIZED_FORMATS.register
class GgufFormat(QuantizedFormat):
    """One file for each type in `spec.output.gguf`."""

    name = ArtifactFormat.GGUF

    def exports(self, spec: Spec) -> tuple[QuantizedExport, ...]:
        """One for each type."""
        return tuple(map(GgufExport, spec.output.gguf_types))

    def last_files(self, spec: Spec) -> tuple[str, ...]:
        """All: each is complete in itself."""
        return tuple(map(gguf_file, spec.output.gguf_types))

    def check_base(self, spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
        """Its architecture and tokenizer must be ones that transformers and llama.cpp read."""
        from ..gguf_files import check_model

        check_model(folder, spec.model.uri, scratch)

    def write(self, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path) -> None:
        """One file after the other."""
        from ..gguf_files import check_model, write_gguf

        uri = config.spec.model.uri
        check_model(source, uri, scratch)
        for kind in config.spec.output.gguf_types:
            write_gguf(source, folder / gguf_file(kind), kind, uri=uri, name=f"{config.job.name} {config.run_name}")
