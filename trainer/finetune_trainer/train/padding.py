"""Computes a micro-batch in groups of rows of similar length, each padded to its own width.

A global batch has rows of all lengths (see data/order.py). As one micro-batch per step, all rows would be padded to the
longest one. As several micro-batches, DeepSpeed would reduce the gradients after each of them. The forward pass of a
micro-batch therefore consists of one pass per group, followed by one backward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def split_by_width(batch: Mapping[str, torch.Tensor], groups: int) -> list[dict[str, torch.Tensor]]:
    """Split a batch into groups of consecutive rows, without the columns that contain only padding.

    Tensors have shape (rows, width), padded on the right, or (rows,). `groups` must divide the number of rows.
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
    """Make the model in training mode return a tuple with the logits of each group of a micro-batch.

    The method of the instance is replaced, so parameters keep their names, and hooks of the module, in which ZeRO-3
    gathers parameters, run once per micro-batch.
    """
    forward = model.forward

    def by_groups(**inputs: Any) -> Any:
        if not model.training:
            return forward(**inputs)
        return tuple(forward(**group).logits for group in split_by_width(inputs, groups))

    model.forward = by_groups


def batch_by_groups(batch: Mapping[str, torch.Tensor], logits: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of each group, as `split_by_width` does, for the logits of `forward_by_groups`.

    The widths are taken from the logits if these have one entry per token, because computing them from the mask would
    wait for the GPU.
    """
    parts: list[dict[str, torch.Tensor]] = [{} for _ in logits]
    for name, tensor in batch.items():
        for part, rows, of in zip(parts, tensor.chunk(len(logits)), logits, strict=True):
            part[name] = rows[:, : of.shape[1]] if rows.dim() > 1 and of.dim() > 2 else rows
    return parts
