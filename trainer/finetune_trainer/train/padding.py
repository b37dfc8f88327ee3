"""Computes a micro-batch in groups of rows of similar length, each padded to its own width.

A global batch has rows of all lengths (see data/order.py). As one micro-batch per step, all rows would be padded to the
longest one. As several micro-batches, DeepSpeed would reduce the gradients after each of them. The forward pass of a
micro-batch therefore consists of one pass per group, followed by one backward pass.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import nn

_WIDTHS = (64, 8)
"""Multiples that the width of a batch is padded to on GPUs, the preferred one first."""

_MOST_PADDING = 0.05
"""Share of the tokens that this padding may add on average."""


def width_multiple(mean_length: float, max_length: int, *, on_gpus: bool) -> int:
    """Return what the width of a batch is padded to a multiple of: 64, 8 or 1. On the CPU 1.

    In 16 bit, tensor cores compute matrices whose sides are multiples of 8 elements, and are fastest with multiples of
    64 (NVIDIA, "Matrix Multiplication Background User's Guide"). A multiple of m adds (m - 1) / 2 tokens to a row on
    average; 64 is used where these are few. It divides `max_length`, so that no row is longer than the model reads.
    """
    if not on_gpus:
        return 1
    limits = {64: _MOST_PADDING * mean_length >= (64 - 1) / 2, 8: True}
    return next((each for each in _WIDTHS if limits[each] and max_length % each == 0), 1)


def group_widths(mask: torch.Tensor, groups: int, multiple: int = 1) -> list[int]:
    """Return the width of each group of consecutive rows, rounded up to `multiple`, for a mask (rows, width).

    The mask must be in host memory: with one on a GPU, the host would wait for all kernels before it.
    """
    rows, width = mask.shape[0] // groups, mask.shape[1]
    used = mask.view(groups, rows, width).sum(dim=2).amax(dim=1).tolist()
    return [min(width, ceil(each / multiple) * multiple) for each in used]


def split_by_width(
    batch: Mapping[str, torch.Tensor], groups: int, widths: Sequence[int] | None = None
) -> list[dict[str, torch.Tensor]]:
    """Split a batch into groups of consecutive rows, each with the columns up to its width.

    Tensors have shape (rows, width), padded on the right, or (rows,). `groups` must divide the number of rows.
    `widths` are those of `group_widths`, by default without columns that contain only padding.
    """
    if groups == 1:
        return [dict(batch)]
    if widths is None:
        widths = group_widths(batch["attention_mask"], groups)
    rows = batch["attention_mask"].shape[0] // groups
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
    gathers parameters, run once per micro-batch. The argument `group_widths` has the width of each group.
    """
    forward = model.forward

    def by_groups(group_widths: Sequence[int] | None = None, **inputs: Any) -> Any:
        if not model.training:
            return forward(**inputs)
        return tuple(forward(**group).logits for group in split_by_width(inputs, groups, group_widths))

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
