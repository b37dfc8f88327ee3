"""CompressedTensors: a folder in Hugging Face layout for vLLM. compressed_tensors is imported when it is used."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import CompressedTensorsConfig

from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat, CandidateName, CompressedTensorsScheme, Spec

from ...errors import BadConfigError, ExportUnusableError
from ...methods.base import EXPORT_ADVICE
from ...store.client import ObjectStore
from ..inspect import tensor_shapes
from ..load import TORCH_DTYPES
from ..portable import copy_tokenizer, keep_generation_config
from ..reload import reload_model
from ..stored_weights import StoredWeights, check_weights
from ..weights import WeightPlan, plan_weights, unpartitioned
from .base import QUANTIZED_FORMATS, QuantizedExport, QuantizedFormat

if TYPE_CHECKING:
    from ..compressed_weights import Packing

_ACCEPTED = {CompressedTensorsScheme.W8A16: 0.05, CompressedTensorsScheme.W4A16: 0.5}
_BITS = {CompressedTensorsScheme.W8A16: 8, CompressedTensorsScheme.W4A16: 4}
_GROUPS = {CompressedTensorsScheme.W8A16: None, CompressedTensorsScheme.W4A16: 128}
"""Weights of a row that share a scale; None: all."""
_PACKED = ".weight_packed"
_CONVERSION_FAILED = "automatic conversion of the weights"
"""In the error of transformers if the parts of a layer are incomplete or do not fit."""


@dataclass(frozen=True)
class CompressedTensorsExport(QuantizedExport):
    """The folder."""

    artifact: ClassVar = ArtifactFormat.COMPRESSED_TENSORS
    candidate: ClassVar = CandidateName.COMPRESSED_TENSORS
    scheme: CompressedTensorsScheme

    @property
    def title(self) -> str:
        """`CompressedTensors W8A16`."""
        return f"{self.artifact} {self.scheme}"

    @property
    def accepted(self) -> float:
        """By the number of bits."""
        return _ACCEPTED[self.scheme]

    def reload(self, folder: Path, uri: str, prepared: Prepared, device: str) -> Any:
        """With transformers, which dequantizes it."""
        settings: Any = CompressedTensorsConfig  # has no type hints
        with warnings.catch_warnings():
            # That the rest of the configuration is that of the folder is what is wanted.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`", category=UserWarning)
            try:
                model = reload_model(folder, uri, prepared, quantization_config=settings(dequantize=True))
            except RuntimeError as error:  # not those of torch, such as a lack of memory
                if _CONVERSION_FAILED not in str(error):
                    raise
                raise ExportUnusableError(f"{uri} cannot be reloaded: {error}", advice=EXPORT_ADVICE) from error
        return model.to(device).eval()

    def check(self, model: Any, source: Path, folder: Path, uri: str, texts: tuple[str, ...]) -> None:
        """Weights are exactly the quantized ones, and those without quantization as they were."""
        packing = _packing(self.scheme)
        packed = {name.removesuffix(_PACKED) for name in StoredWeights.of(folder).files if name.endswith(_PACKED)}

        def values(name: str, weight: torch.Tensor) -> torch.Tensor:
            layer, _, last = name.rpartition(".")
            if last != "weight" or layer not in packed:
                return weight
            return packing.values(weight, model.get_submodule(layer).weight.dtype)

        check_weights(model, source, uri, values)


@QUANTIZED_FORMATS.register
class CompressedTensorsFormat(QuantizedFormat):
    """Linear layers of the base model with integers of 4 or 8 bits, packed into 32 bits."""

    name = ArtifactFormat.COMPRESSED_TENSORS

    def exports(self, spec: Spec) -> tuple[QuantizedExport, ...]:
        """One."""
        return (CompressedTensorsExport(spec.output.compressed_tensors_scheme),)

    def is_current(self, spec: Spec, uri: str, store: ObjectStore) -> bool:
        """Whether the folder has the scheme of the spec, which may have been changed since."""
        groups = store.get_json(f"{uri}/config.json")["quantization_config"]["config_groups"]
        scheme = spec.output.compressed_tensors_scheme
        return all(group["weights"]["num_bits"] == _BITS[scheme] for group in groups.values())

    def check_base(self, spec: Spec, folder: Path, plan: WeightPlan, scratch: Path) -> None:
        """Its linear layers must have weights of their own, and rows that can be divided into groups."""
        uri, scheme = spec.model.uri, spec.output.compressed_tensors_scheme
        model = _empty_model(plan)
        layers = _layers(model, plan)
        if not layers:
            raise _unsupported(uri, f"{type(model).__name__} has no linear layers that can be quantized")
        # transformers 5 joins the experts of a mixture into one parameter each, and divides it when it saves the model.
        joined = [name for name, value in model.named_parameters() if value.ndim > 2 and not name.endswith(".weight")]
        if joined:
            raise _unsupported(uri, f"{type(model).__name__} has matrices outside of linear layers: {joined[0]}")
        prefix, stored = f"{model.base_model_prefix}.", tensor_shapes(folder, uri)
        for layer in layers:
            name = f"{layer}.weight"
            if not {name, name.removeprefix(prefix), f"{prefix}{name}"} & stored.keys():
                raise _unsupported(uri, f"transformers loads its weights under other names than they have: {name}")
        group = _GROUPS[scheme]
        uneven = {name: shape[1] for name, shape in layers.items() if group and shape[1] % group}
        if group and uneven:
            first, inputs = next(iter(uneven.items()))
            raise BadConfigError(
                f"spec.output.compressedTensors.scheme must not be {scheme} for {uri}: {len(uneven)} of "
                f"{len(layers)} linear layers have a number of inputs that is not a multiple of {group}, first {first} "
                f"with {inputs}",
                advice=f"write {CompressedTensorsScheme.W8A16}, or use another base model",
            )

    def write(self, source: Path, folder: Path, config: PreparedConfig, *, scratch: Path) -> None:
        """One weight file after the other, without loading the model."""
        prepared, spec = config.prepared, config.spec
        uri = spec.model.uri
        plan = plan_weights(source, uri, prepared.task, prepared.labels)
        self.check_base(spec, source, plan, scratch)
        model = _empty_model(plan)
        layers = _layers(model, plan)
        stored = tensor_shapes(source, uri)
        if absent := [layer for layer in layers if f"{layer}.weight" not in stored]:
            raise _unsupported(uri, f"transformers saves its weights under other names than it loads them: {absent[0]}")
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        # vLLM knows the other ones, such as the head of GPT-NeoX, by the names in the files.
        matrices = {name.removesuffix(".weight") for name, shape in stored.items() if len(shape) == 2}
        renamed = {name for name in matrices if f"{name}.weight" in stored.keys() - model.state_dict().keys()}
        packing = _packing(spec.output.compressed_tensors_scheme)
        packing.write(source, folder, layers, (linear | renamed) - layers.keys(), TORCH_DTYPES[prepared.dtype])
        keep_generation_config(source, folder)
        copy_tokenizer(source, folder)


def _packing(scheme: CompressedTensorsScheme) -> "Packing":
    from ..compressed_weights import Packing

    return Packing(_BITS[scheme], _GROUPS[scheme])


def _empty_model(plan: WeightPlan) -> Any:
    with unpartitioned(), torch.device("meta"):
        return plan.model_class(plan.config)


def _layers(model: Any, plan: WeightPlan) -> dict[str, tuple[int, int]]:
    """Layer that is quantized -> its outputs and inputs. The reader knows only `nn.Linear`, not the Conv1D of GPT-2."""
    return {name: shape for name, shape in plan.matrices.items() if type(model.get_submodule(name)) is nn.Linear}


def _unsupported(uri: str, why: str) -> BadConfigError:
    return BadConfigError(
        f"spec.output.formats must not have {ArtifactFormat.COMPRESSED_TENSORS} for {uri}: {why}",
        advice="remove it, or use another base model",
    )
