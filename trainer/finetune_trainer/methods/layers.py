"""The transformer layers of a model, and the depth of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def transformer_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Return name and modules of the transformer layers; None if the model has no list of them (ALBERT shares one)."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(name, module) for name, module in _module_lists(model) if len(module) == count]
    return max(lists, key=lambda entry: sum(1 for _ in entry[1].parameters()), default=None)


_RATES = "spec.method.full.layerLearningRateDecay"


def layer_depths(model: PreTrainedModel, field: str = _RATES) -> dict[str, int]:
    """Return the depth of every parameter: 0 for the head, 1 for the last of N layers, N for the first.

    A parameter outside the list of layers has the depth at which the forward pass first uses it: N + 1 before the first
    layer (embeddings, also if an output matrix is tied to them), that of the layer before it between two layers, and 0
    after the last layer. N + 1 if a text does not use it, such as an image encoder. Raises BadConfigError for `field`,
    which needs the depths, if the model has no single list of layers, or if its forward pass cannot be followed.
    """
    from .module_order import UnknownOrderError, first_uses

    found = transformer_layers(model)
    if found is None:
        raise _no_depths(field, f"{type(model).__name__} has no list of transformer layers")
    if model.config.is_encoder_decoder:
        raise _no_depths(field, f"{type(model).__name__} has two lists of transformer layers")
    try:
        used = first_uses(model, found[0])
    except UnknownOrderError as error:
        raise _no_depths(field, f"the order of the modules of {type(model).__name__} is not known ({error})") from error
    prefix, count = f"{found[0]}.", len(found[1])
    lists = tuple(f"{name}." for name, _ in _module_lists(model))
    depths: dict[int, int] = {}
    # An output matrix that is tied to the embeddings has their depth, also where its name comes first.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(prefix):
            depth = count - int(name.removeprefix(prefix).partition(".")[0])
        else:
            depth = used.get(name, count + 1)
            if 0 < depth <= count and name.startswith(lists):
                raise _no_depths(field, f"the layers of {type(model).__name__} are in several lists")
        depths[id(parameter)] = max(depth, depths.get(id(parameter), 0))
    return {name: depths[id(parameter)] for name, parameter in model.named_parameters()}


def _no_depths(field: str, reason: str) -> BadConfigError:
    return BadConfigError(f"{field} must be absent, because {reason}", advice="remove it")


def _module_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    from torch import nn

    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
