"""The matrices whose weights `spec.method.full.pruning` sets to zero, and the choice of the smallest values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.v1alpha1 import Pruning

from ...errors import BadConfigError
from ..layers import transformer_layers
from .base import PATH

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Matrix:
    """The weight of a linear layer."""

    module: nn.Module
    kind: str
    """Name of the linear layer within its transformer layer, such as `self_attn.q_proj`."""
    is_transposed: bool
    """Whether the weight has the shape (inputs, outputs), as in GPT-2, and not (outputs, inputs)."""

    @property
    def weight(self) -> torch.Tensor:
        """The parameter."""
        return self.module.get_parameter("weight")

    def oriented(self, values: torch.Tensor) -> torch.Tensor:
        """A view of values in the shape of the weight as (outputs, inputs), or the reverse."""
        return values.t() if self.is_transposed else values


def layer_matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    """Return name -> matrix of every linear layer within the transformer layers.

    Raises BadConfigError if the model has no single list of layers, or if layers have weights of another kind, such as
    those of experts, which would not be pruned.
    """
    prefix, layers = single_list_of_layers(model)
    found: dict[str, Matrix] = {}
    for index, layer in enumerate(layers):
        for kind, module in layer.named_modules():
            name = type(module).__name__
            if name in {"Linear", "Conv1D"}:
                found[f"{prefix}.{index}.{kind}.weight"] = Matrix(module, kind, is_transposed=name == "Conv1D")
        for name, parameter in layer.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if len(shape) > 1 and f"{prefix}.{index}.{name}" not in found:
                raise BadConfigError(
                    f"{PATH} must be absent, because {prefix}.{index}.{name} of {type(model).__name__} is not the "
                    "weight of a linear layer",
                    advice="remove it, or use the algorithm DropLayers",
                )
    return found


def single_list_of_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and modules of the transformer layers. Raises BadConfigError if there is none, or more than one."""
    found = transformer_layers(model)
    if found is None or model.config.is_encoder_decoder:
        number = "no list" if found is None else "two lists"
        raise BadConfigError(
            f"{PATH} must be absent, because {type(model).__name__} has {number} of transformer layers",
            advice="remove it, or use another base model",
        )
    return found


def sparsity_of(block: Pruning) -> float:
    """`sparsity`, which the rules require for the algorithms that set weights to zero."""
    assert block.sparsity is not None, "the rules require it"
    return block.sparsity


def pruned_count(weights: int, sparsity: float) -> int:
    """Number of weights that become zero."""
    return round(sparsity * weights)


def matrices_note(model: PreTrainedModel, block: Pruning, sizes: dict[str, int]) -> str:
    """`sizes` has the number of zeros of each matrix."""
    total = sum(matrix.weight.numel() for matrix in layer_matrices(model).values())
    zeros = sum(sizes.values())
    return (
        f"pruning {block.algorithm}: {zeros:,} of {total:,} weights in {len(sizes)} matrices of the transformer layers "
        f"are set to zero ({zeros / total:.1%})"
    )
