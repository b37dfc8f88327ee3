"""Checks that a merged model computes what base model and adapter compute, layer by layer.

The loss of a merged model in 16 bits differs from that of base model and adapter by rounding, and after a short or
gentle training by no less from that of the base model. So a loss cannot tell whether the update was added. The outputs
of single layers can: rounding errors of a matrix are independent of the update, and average out over its values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ExportUnusableError
from .base import EXPORT_ADVICE

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

_ROWS = 8
"""Random inputs of each layer, and rows at each end of an embedding."""
_SHARE = 0.1
"""Accepted part of an update that is missing or too much, besides rounding."""
_SIX_SIGMA = 6.0
_LEAST_EPSILON = 1e-5
"""Of sums in 32 bits over the width of a layer."""


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of one layer for fixed inputs, in 32 bits."""

    inputs: torch.Tensor
    base: torch.Tensor
    adapted: torch.Tensor
    """With the adapter, not merged."""


def adapted_outputs(adapted: PeftModel) -> dict[str, LayerOutputs]:
    """Outputs of every layer of a base model that has an adapter, by the name of the layer in the base model.

    Call it before the adapter is merged.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, module in adapted.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        assert not module.merged, "its outputs would be those of the base layer"
        tuned: Any = module
        layer = tuned.get_base_layer()
        inputs = _inputs(layer, generator)
        if inputs is None:
            continue
        outputs = LayerOutputs(inputs, base=_outputs(layer, inputs), adapted=_outputs(tuned, inputs))
        # PEFT wraps an embedding with trained rows twice.
        found[name.removesuffix(".token_adapter")] = outputs
    return found


def check_merged(merged: PreTrainedModel, expected: Mapping[str, LayerOutputs]) -> None:
    """Raise ExportUnusableError for a layer whose outputs are not those of `adapted_outputs`."""
    import torch

    for name, outputs in expected.items():
        layer: Any = merged.get_submodule(name)
        epsilon = max(torch.finfo(layer.weight.dtype).eps, _LEAST_EPSILON)
        error = (_outputs(layer, outputs.inputs) - outputs.adapted).double()
        update = (outputs.adapted - outputs.base).double()
        # Weights, updates and their sums are rounded.
        size = max(float(part.double().norm()) for part in (outputs.base, outputs.adapted, update))
        length = float(update.norm())
        along = abs(float((error * update).sum())) / length if length else 0.0
        noise = epsilon * size / update.numel() ** 0.5
        # NaN fails both comparisons.
        is_update = along <= _SHARE * length + _SIX_SIGMA * noise
        if not (is_update and float(error.norm()) <= _SHARE * length + epsilon * size):
            raise ExportUnusableError(
                f"merging the adapter changed the layer {name} by something else than the adapter: the outputs of the "
                f"merged layer differ by {float(error.norm()):.3g}, of an update of {length:.3g}",
                advice=EXPORT_ADVICE,
            )


def _inputs(layer: nn.Module, generator: torch.Generator) -> torch.Tensor | None:
    """Shape (rows, width); ids, shape (rows,), for an embedding; None for a layer of another kind."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() > 2:
        return None
    if isinstance(layer, nn.Embedding):
        rows = min(_ROWS, layer.num_embeddings)
        return torch.cat([torch.arange(rows), torch.arange(layer.num_embeddings - rows, layer.num_embeddings)])
    width = weight.shape[0] if isinstance(layer, Conv1D) or weight.dim() == 1 else weight.shape[1]
    return torch.randn(_ROWS, width, generator=generator)


def _outputs(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs in evaluation mode, computed in 32 bits. The layer stays as it is."""
    import torch

    with torch.no_grad():
        device = next(layer.parameters()).device
        outputs: torch.Tensor = copy.deepcopy(layer).float().eval()(inputs.to(device))
    return outputs.cpu()
