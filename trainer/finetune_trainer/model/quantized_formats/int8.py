"""Int8: a folder in Hugging Face layout with the 8-bit weights of bitsandbytes, which is imported when it is used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import BitsAndBytesConfig

from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat, CandidateName, Spec

from ...bitsandbytes_import import import_bitsandbytes
from ...errors import BadConfigError
from ..load import TORCH_DTYPES
from ..portable import add_older_names, copy_tokenizer, keep_generation_config
from ..quantize import check_quantized_layers
from ..reload import reload_model
from ..stored_weights import check_weights
from ..weights import WeightPlan, plan_weights
from .base import QUANTIZED_FORMATS, QuantizedExport, QuantizedFormat


@dataclass(frozen=True)
class Int8Export(QuantizedExport):
    """The folder."""

    artifact: ClassVar = ArtifactFormat.INT8
    candidate: ClassVar = CandidateName.INT8
    title: ClassVar = str(ArtifactFormat.INT8)
    accepted: ClassVar = 0.1

    def reload(self, folder: Path, uri: str, prepared: Prepared, device: str) -> Any:
        """With bitsandbytes."""
        import_bitsandbytes()
        return reload_model(folder, uri, prepared, device_map={"": device}).eval()

    def check(self, model: Any, source: Path, folder: Path, uri: str, texts: tuple[str, ...]) -> None:
        """The weights without quantization are as they were."""
        check_weights(model, source, uri, lambda _name, weight: weight)


@QUANTIZED_FORMATS.register
class Int8Format(QuantizedFormat):
    """Linear layers with 8 bits for each weight and a scale for each row."""

    name = ArtifactFormat.INT8

    def exports(self, spec: Spec) -> tuple[QuantizedExport, ...]:
        """One."""
        return (Int8Export(),)

    def check_base(self, spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
        """It must have linear layers."""
        if not plan.matrices:
            raise BadConfigError(
                f"spec.output.formats must not have Int8 for {spec.model.uri}: {plan.model_class.__name__} has no "
                "linear layers that bitsandbytes can quantize",
                advice="remove it, or use another base model",
            )

    def write(self, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path) -> None:
        """Quantize while transformers loads the model."""
        import_bitsandbytes()
        prepared, spec = config.prepared, config.spec
        plan = plan_weights(source, spec.model.uri, prepared.task, prepared.labels)
        self.check_base(spec, source, plan, scratch)
        settings: Any = BitsAndBytesConfig  # has no type hints
        model = plan.model_class.from_pretrained(
            source,
            dtype=TORCH_DTYPES[prepared.dtype],
            device_map={"": "cuda" if config.world.gpus else "cpu"},
            quantization_config=settings(load_in_8bit=True, llm_int8_skip_modules=list(plan.unquantized)),
        )
        check_quantized_layers(model, plan.matrices)
        model.save_pretrained(folder)
        keep_generation_config(source, folder)
        add_older_names(folder, source)
        copy_tokenizer(source, folder)
