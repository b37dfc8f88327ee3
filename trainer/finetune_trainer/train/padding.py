"""A micro batch in groups of rows of similar length, each padded to its own width and computed by itself.

A global batch has rows of all lengths (see data/order.py). In one micro batch per step all would be padded to the
longest; as more micro batches, DeepSpeed would reduce gradients after each of them. So one forward pass of the model is
several passes over narrower batches, and there is one backward pass for all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def split_by_width(batch: Mapping[str, torch.Tensor], groups: int) -> list[dict[str, torch.Tensor]]:
    """Equal groups of consecutive rows, without the columns that are padding for all of them.

    Tensors are (rows, width), padded on the right, or (rows,). `groups` has to divide the number of rows.
    """
    if groups == 1:
        return [dict(batch)]
    mask = batch["attention_mask"]
    rows, width = mask.shape[0] // groups, mask.shape[1]
    widths = mask.view(groups, rows, width).sum(dim=2).amax(dim=1).tolist()
    return [
        {
            name: tensor[index * rows : (index + 1) * rows][:, :used]
            if tensor.dim() > 1
            else tensor[index * rows :][:rows]
            for name, tensor in batch.items()
        }
        for index, used in enumerate(widths)
    ]


def forward_by_groups(model: nn.Module, groups: int) -> None:
    """Let the model, while it trains, take a micro batch and return a tuple with the logits of each group.

    The method is replaced on the instance: parameters keep their names, and hooks of the module (ZeRO-3 gathers
    parameters in them) run once per pass over the whole micro batch.
    """
    forward = model.forward

    def by_groups(**inputs: Any) -> Any:
        if not model.training:
            return forward(**inputs)
        return tuple(forward(**group).logits for group in split_by_width(inputs, groups))

    model.forward = by_groups


def batch_by_groups(batch: Mapping[str, torch.Tensor], logits: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors of each group, as `split_by_width` would cut them, for the logits of `forward_by_groups`.

    The widths are read from the logits where they have one for every token: to compute them again from the mask would
    wait for the GPU.
    """
    parts: list[dict[str, torch.Tensor]] = [{} for _ in logits]
    for name, tensor in batch.items():
        for part, rows, of in zip(parts, tensor.chunk(len(logits)), logits, strict=True):
            part[name] = rows[:, : of.shape[1]] if rows.dim() > 1 and of.dim() > 2 else rows
    return parts
