"""Quantizes the matrices of a base model with bitsandbytes while transformers loads it.

Each tensor is quantized as it is read, on the device that it is loaded to, so that the whole model is never in memory
unquantized. The same files, floating-point type and kind of device give the same bits, so checkpoints need not contain
the base model. bitsandbytes is imported when a model is quantized.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.v1alpha1 import Quantization

from ..bitsandbytes_import import import_bitsandbytes
from ..errors import ModelUnusableError
from .estimate import NF4_BLOCK


@dataclass(frozen=True)
class BaseQuantization:
    """How the matrices of a base model are loaded."""

    kind: Quantization
    device: torch.device | str = "cpu"
    """Where the model is loaded and quantized."""
    dequantized: bool = False
    """True: the model has the usual layers, whose weights have the values that the quantized ones stand for. Adding an
    adapter to these gives what was trained. They remain on the CPU."""

    @classmethod
    def of(
        cls, kind: Quantization | None, device: torch.device | str, *, dequantized: bool = False
    ) -> "BaseQuantization | None":
        """None without `kind`, that is, without `spec.model.quantization`."""
        return None if kind is None else cls(kind, device, dequantized)


def quantizable(kind: Quantization, layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Those of the layers, name -> outputs and inputs, that can be quantized.

    A block of NF4 is 64 weights of the flattened matrix. The CPU kernel of bitsandbytes reads the scales by row, which
    is the same only if the number of inputs is a multiple of 64.
    """
    return {name: shape for name, shape in layers.items() if kind is not Quantization.NF4 or shape[1] % NF4_BLOCK == 0}


def loading_options(how: BaseQuantization, dtype: torch.dtype, unquantized: Collection[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained`. `unquantized` names the linear layers that are loaded as they are."""
    import_bitsandbytes()
    # transformers reads them as regular expressions, and also as ends of names.
    kept = [f"{name.replace('.', '[.]')}$" for name in unquantized]
    settings: Any = BitsAndBytesConfig  # has no type hints
    if how.kind is Quantization.NF4:
        config = settings(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=kept,
        )
    else:
        config = settings(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
    return {"quantization_config": config, "device_map": {"": how.device}}


def check_quantized_layers(model: PreTrainedModel, expected: Collection[str]) -> None:
    """Raise ModelUnusableError unless these layers of a loaded model are quantized, and no others."""
    bnb = import_bitsandbytes()
    kinds = bnb.nn.Linear4bit | bnb.nn.Linear8bitLt
    found = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    if found != {*expected}:
        raise ModelUnusableError(
            f"transformers has quantized other layers than expected: {', '.join(sorted(found ^ {*expected})[:4])}",
            advice="remove spec.model.quantization and the format Int8, or use another base model",
        )


def patch_quantized_layers(model: PreTrainedModel, how: BaseQuantization, matrices: Collection[str]) -> None:
    """Let the quantized layers of a loaded model compute the same in training, validation and export.

    `matrices` names the layers that must be quantized.
    """
    check_quantized_layers(model, matrices)
    for name in sorted(matrices):
        layer: Any = model.get_submodule(name)
        if how.kind is Quantization.NF4:
            # In a validation on CPUs with AVX512-BF16, it would repack its weights in place and compute in BFloat16.
            layer.support_avx512bf16_for_cpu = False
        else:
            from .int8_linear import Int8Linear

            model.set_submodule(name, Int8Linear.of(layer))
    loaded: Any = model
    # The configuration is exported with the model, and DeepSpeed moves the model between types. PEFT reads
    # `is_loaded_in_4bit` and `is_loaded_in_8bit`, which remain.
    loaded.hf_quantizer.remove_quantization_config(model)


@torch.no_grad()
def fake_quantize_layers(model: PreTrainedModel, how: BaseQuantization, matrices: Collection[str]) -> None:
    """Replace the weights of these layers by the values that they have after quantization."""
    for name in matrices:
        layer: Any = model.get_submodule(name)
        # Conv1D has the transposed matrix of a linear layer.
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        rounded = rounded_matrix(weight, how).to(weight.device)
        layer.weight.data.copy_(rounded.T if isinstance(layer, Conv1D) else rounded)


def rounded_matrix(weight: torch.Tensor, how: BaseQuantization) -> torch.Tensor:
    """The quantized values of a matrix of shape (outputs, inputs), in its type and on the device of `how`."""
    bnb = import_bitsandbytes()
    if how.kind is Quantization.NF4:
        packed = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
        packed = packed.to(how.device)
        values: torch.Tensor = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
        return values
    from .int8_linear import dequantized

    rows = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(how.device)
    return dequantized(rows.data, rows.SCB, weight.dtype)


def logical_numel(parameter: nn.Parameter) -> int:
    """Number of weights of a parameter: one of NF4 has two in each of its elements, one of ZeRO-3 may have none."""
    state = getattr(parameter, "quant_state", None)
    return prod(state.shape) if state is not None else int(getattr(parameter, "ds_numel", parameter.numel()))
