"""Exports with quantized weights: Int8, with bitsandbytes, and GGUF.

The evaluate stage makes them from the complete model, so that each of them can be added after the training. They are
loaded by their readers again, and compared with the trained model weight by weight. Imports torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BitsAndBytesConfig, GgufConfig

from finetune_api.run_layout import gguf_file
from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat, GgufType, Spec

from ..bitsandbytes_import import import_bitsandbytes
from ..errors import BadConfigError
from .load import TORCH_DTYPES
from .portable import add_older_names, copy_tokenizer, keep_generation_config
from .quantize import check_quantized_layers
from .reload import reload_model
from .stored_weights import check_weights
from .weights import WeightPlan, plan_weights


@dataclass(frozen=True)
class QuantizedExport:
    """One export with quantized weights: the folder Int8, or a file of the folder GGUF."""

    kind: GgufType | None = None
    """None: Int8."""

    @property
    def title(self) -> str:
        """`Int8`, `GGUF Q8_0`."""
        return str(ArtifactFormat.INT8) if self.kind is None else f"{ArtifactFormat.GGUF} {self.kind}"

    @property
    def accepted(self) -> float:
        """Accepted mean difference of the loss per row, relative to the mean loss, or to 1 nat if that is smaller."""
        return _ACCEPTED[self.kind]

    def uri(self, config: PreparedConfig) -> str:
        """Address of the folder or file."""
        layout = config.layout
        return layout.artifact(ArtifactFormat.INT8) if self.kind is None else layout.gguf(self.kind)

    def reload(self, folder: Path, uri: str, prepared: Prepared, device: str) -> Any:
        """Load it on a device, in evaluation mode. Raises ExportUnusableError."""
        if self.kind is None:
            import_bitsandbytes()
            return reload_model(folder, uri, prepared, device_map={"": device}).eval()
        dequantized = GgufConfig(dequantize=True)
        file = gguf_file(self.kind)
        return reload_model(folder, uri, prepared, gguf_file=file, quantization_config=dequantized).to(device).eval()

    def check(self, model: Any, source: Path, folder: Path, uri: str, texts: tuple[str, ...]) -> None:
        """Compare the reloaded model, and the tokenizer of a GGUF file on `texts`, with the folder `source`.

        Raises ExportUnusableError.
        """
        if self.kind is None:  # the weights without quantization are as they were
            check_weights(model, source, uri, lambda _name, weight: weight)
            return
        from .gguf_files import check_tokenizer, values_in

        check_weights(model, source, uri, values_in(self.kind))
        check_tokenizer(source, folder / gguf_file(self.kind), uri, texts)


_ACCEPTED = {
    GgufType.F16: 0.01,
    GgufType.BF16: 0.05,
    GgufType.Q8_0: 0.05,
    GgufType.Q5_0: 0.2,
    GgufType.Q4_0: 0.5,
    None: 0.1,
}
"""Wide, because the loss depends on model and data: faults of a file are found by the comparison of its weights."""


def quantized_exports(spec: Spec) -> tuple[QuantizedExport, ...]:
    """The exports with quantized weights that the spec requests."""
    int8 = (QuantizedExport(),) if ArtifactFormat.INT8 in spec.output.formats else ()
    return (*int8, *(QuantizedExport(kind) for kind in spec.output.gguf_types))


def check_quantized_exports(spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
    """Raise BadConfigError if the base model cannot be exported in a format of the spec."""
    if ArtifactFormat.INT8 in spec.output.formats:
        _check_linear(plan, spec.model.uri)
    if ArtifactFormat.GGUF in spec.output.formats:
        from .gguf_files import check_model

        check_model(folder, spec.model.uri, scratch)


def write_quantized(
    artifact: ArtifactFormat, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path
) -> None:
    """Write the complete model of the folder `source` in one format.

    Raises BadConfigError if the format cannot hold the model.
    """
    if artifact is ArtifactFormat.INT8:
        _write_int8(source, folder, config)
        return
    from .gguf_files import check_model, write_gguf

    uri = config.spec.model.uri
    check_model(source, uri, scratch)  # a format may be added after the prepare stage
    for kind in config.spec.output.gguf_types:
        write_gguf(source, folder / gguf_file(kind), kind, uri=uri, name=f"{config.job.name} {config.run_name}")


def _write_int8(source: Path, folder: Path, config: PreparedConfig) -> None:
    import_bitsandbytes()
    prepared, uri = config.prepared, config.spec.model.uri
    plan = plan_weights(source, uri, prepared.task, prepared.labels)
    _check_linear(plan, uri)
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


def _check_linear(plan: WeightPlan, uri: str) -> None:
    if not plan.matrices:
        raise BadConfigError(
            f"spec.output.formats must not have Int8 for {uri}: {plan.model_class.__name__} has no linear layers that "
            "bitsandbytes can quantize",
            advice="remove it, or use another base model",
        )
