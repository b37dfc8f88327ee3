"""The transformer layers of a model, and the depth of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def transformer_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Return name and modules of the transformer layers; None if the model has no list of them (ALBERT shares one)."""
    from torch import nn

    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return max(lists, key=lambda entry: sum(1 for _ in entry[1].parameters()), default=None)


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return the depth of every parameter below the head: 0 for the head, 1 for the last of N layers, N for the first.

    What a model defines before its layers has depth N + 1: the embeddings, also if an output matrix is tied to them.
    Raises BadConfigError if the model has no list of layers.
    """
    found = transformer_layers(model)
    if found is None:
        raise BadConfigError(
            f"spec.method.full.layerLearningRateDecay must be absent, because {type(model).__name__} has no list of "
            "transformer layers",
            advice="remove it",
        )
    prefix, layers = f"{found[0]}.", found[1]
    depths: dict[str, int] = {}
    depth = len(layers) + 1
    for name, _ in model.named_parameters():
        if name.startswith(prefix):
            depths[name] = len(layers) - int(name.removeprefix(prefix).partition(".")[0])
            depth = 0  # parameters after the layers belong to the head
        else:
            depths[name] = depth
    return depths
