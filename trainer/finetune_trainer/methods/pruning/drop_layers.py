"""Drops transformer layers: those before the last one, which changes the output the least (Gromov et al. 2024, arXiv
2403.17887, section 4.4)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Pruning, PruningAlgorithm

from ...errors import BadConfigError
from .base import PATH, PRUNERS, Pruner
from .matrices import single_list_of_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@PRUNERS.register
class DropLayers(Pruner):
    """The exported config.json has fewer layers, so every program that knows the architecture can load the model."""

    name = PruningAlgorithm.DROP_LAYERS
    sets_zeros = False

    def note(self, model: PreTrainedModel, block: Pruning) -> str:
        """Name the layers."""
        dropped, count = dropped_layers(model, block), len(single_list_of_layers(model)[1])
        before = sum(parameter.numel() for parameter in model.parameters())
        self.reshape(model, block)
        removed = before - sum(parameter.numel() for parameter in model.parameters())
        _check_shapes(model)
        named = ", ".join(map(str, dropped))
        return (
            f"pruning {block.algorithm}: {len(dropped)} of {count} layers are dropped (counted from 0: {named}), with "
            f"{removed:,} of {before:,} parameters"
        )

    def reshape(self, model: PreTrainedModel, block: Pruning) -> None:
        """Remove the modules, number the others anew, and shorten lists of config.json with an entry for each layer."""
        dropped = {*dropped_layers(model, block)}
        _, layers = single_list_of_layers(model)
        count = len(layers)
        kept = [index for index in range(count) if index not in dropped]
        for index in sorted(dropped, reverse=True):
            del layers[index]
        for number, layer in enumerate(layers):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):  # the place of its keys in the cache
                    vars(module)["layer_idx"] = number
        text: Any = model.config.get_text_config()
        for name, values in list(vars(text).items()):
            if "layer" in name and isinstance(values, list) and len(values) == count:
                setattr(text, name, [values[index] for index in kept])
        text.num_hidden_layers = len(kept)


def dropped_layers(model: PreTrainedModel, block: Pruning) -> tuple[int, ...]:
    """Return the numbers of the dropped layers, counted from 0. Raises BadConfigError if there are too few layers."""
    assert block.layers is not None, "the rules require it"
    count = len(single_list_of_layers(model)[1])
    if block.layers >= count:
        raise BadConfigError(
            f"{PATH}.layers must be less than {count}, the number of layers of {type(model).__name__}, not "
            f"{block.layers}",
            advice=f"write at most {count - 1}" if count > 1 else "remove spec.method.full.pruning",
        )
    return tuple(range(count - 1 - block.layers, count - 1))


def _check_shapes(model: PreTrainedModel) -> None:
    """Raise BadConfigError if a model that is made from the new configuration has other parameters.

    The layers of some models differ by their number, for example every second one has experts.
    """
    import torch

    with torch.device("meta"):
        fresh: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    shapes, expected = ({name: value.shape for name, value in one.named_parameters()} for one in (model, fresh))
    if shapes != expected:
        differing = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
        raise BadConfigError(
            f"{PATH}.algorithm must not be DropLayers, because the layers of {type(model).__name__} differ by their "
            f"number: without {differing[0]} as it is, config.json does not describe the rest",
            advice="write Magnitude or Wanda",
        )
