"""Finds the order in which a model uses its parameters, in a forward pass on torch's meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

_INPUTS = ((False, True), (True, True), (False, False))
"""Whether the text has a mask, and whether the model has a pad token. Tensors on the meta device have no values: many
models search for the pad token if there is no mask, some read the values of a mask, and some need one of both."""


class UnknownOrderError(Exception):
    """The forward pass of a model needs values of tensors, or does not call the layers."""


def first_uses(model: PreTrainedModel, layers_name: str) -> dict[str, int]:
    """Return the depth at which the forward pass of a text first uses each parameter: see `layer_depths`.

    `layers_name` is the name of the list of layers. Parameters that are not used are absent. Draws no random numbers.
    Raises UnknownOrderError.
    """
    reasons = []
    for has_mask, has_padding in _INPUTS:
        try:
            return _recorded(model, layers_name, has_mask=has_mask, has_padding=has_padding)
        except UnknownOrderError as error:
            reasons.append(str(error))
    raise UnknownOrderError(reasons[-1])


def _recorded(model: PreTrainedModel, layers_name: str, *, has_mask: bool, has_padding: bool) -> dict[str, int]:
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    # The output matrix of the copy has its own name, because it is not tied to the embeddings.
    config.tie_word_embeddings = text.tie_word_embeddings = False
    if not has_padding:
        config.pad_token_id = text.pad_token_id = None
    try:
        with torch.device("meta"), torch.no_grad():
            skeleton: Any = type(model)(config)
            skeleton.eval()
            layers = skeleton.get_submodule(layers_name)
            recorder = _Recorder(skeleton, len(layers) + 1)
            for index, layer in enumerate(layers):
                layer.register_forward_pre_hook(recorder.at(len(layers) - index))
            layers[-1].register_forward_hook(recorder.at(0))
            tokens = torch.ones((1, 2), dtype=torch.long)
            with recorder:
                skeleton(input_ids=tokens, **({"attention_mask": tokens} if has_mask else {}))
    except Exception as error:  # modeling files raise any exception
        raise UnknownOrderError(f"{type(error).__name__}: {str(error)[:200]}") from error
    if recorder.depth:
        raise UnknownOrderError("it does not call its last layer")
    return recorder.first


class _Recorder(TorchFunctionMode):
    """Records the current depth for each parameter that a tensor is computed from.

    Functions of torch are observed, not modules: some models read the weight of a module that they never call.
    """

    def __init__(self, skeleton: nn.Module, depth: int) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in skeleton.named_parameters()}
        self.depth = depth
        self.first: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:  # only asked of masks, and that of the text hides nothing
            return True
        result = func(*args, **(kwargs or {}))
        if next(_tensors(result), None) is not None:  # not for a look at a shape, a type or a device
            for value in _tensors((args, kwargs)):
                if name := self.names.get(id(value)):
                    self.first.setdefault(name, self.depth)
        return result

    def at(self, depth: int) -> Callable[..., None]:
        """Return a hook of a module that sets the current depth."""

        def hook(*_: Any) -> None:
            self.depth = depth

        return hook


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
