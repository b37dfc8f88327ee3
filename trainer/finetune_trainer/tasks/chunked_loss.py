"""The loss of a language model without the logits of all tokens, `spec.training.chunkedLoss`.

The logits are the largest tensor of a step with a large vocabulary. Here the output layer returns its input, and the
loss multiplies parts of it with the weights, only for tokens that carry loss; the backward pass computes each part
again, and overwrites it with its gradient. `torch.nn.functional.linear_cross_entropy` also computes parts, but sums in
the data type of the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .base import IGNORED, LOSS_CHUNK_BYTES


class ChunkingError(ValueError):
    """The model's logits are not the result of a plain linear layer."""


@dataclass(frozen=True)
class DeferredLogits:
    """Stands for the logits of a model: the input of its output layer, and the layer.

    Slices of rows and tokens, which the models of some methods take, stand for those logits; any other index computes
    logits.
    """

    hidden: torch.Tensor
    """(rows, tokens, hidden size)."""
    head: nn.Linear

    @property
    def shape(self) -> torch.Size:
        """Shape of the logits."""
        return torch.Size((*self.hidden.shape[:-1], self.head.weight.shape[0]))

    def dim(self) -> int:
        """Number of dimensions of the logits."""
        return self.hidden.dim()

    def __getitem__(self, index: Any) -> "DeferredLogits | torch.Tensor":
        """Logits of these rows and tokens."""
        if isinstance(index, tuple) and len(index) <= 2 and all(isinstance(part, slice) for part in index):
            return DeferredLogits(self.hidden[index], self.head)
        return functional.linear(self.hidden[index], self.head.weight, self.head.bias)

    def loss(self, targets: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
        """Summed cross-entropy in nats, in 32 bit. `targets` (rows, tokens) are token ids or IGNORED."""
        places = (targets != IGNORED).flatten().nonzero()[:, 0]
        hidden = self.hidden.flatten(0, 1).index_select(0, places)
        labels = targets.flatten().index_select(0, places)
        size = max(1, LOSS_CHUNK_BYTES // (4 * self.head.weight.shape[0]))
        parts = zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
        losses = [_ChunkLoss.apply(part, self.head.weight, self.head.bias, label, smoothing) for part, label in parts]
        # Without targets, the loss is 0 and every parameter has a gradient, as that of the plain loss.
        return torch.stack(losses).sum() if losses else (hidden.float().sum() + 0.0 * self.head.weight.float().sum())


class _ChunkLoss(torch.autograd.Function):
    """Summed cross-entropy of T tokens, whose logits exist once in 32 bit and are overwritten.

    `functional.cross_entropy` with checkpointing would keep three tensors of that size: the logits, their log-softmax
    and the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        """`hidden` (T, hidden size), `labels` (T,) without IGNORED. Returns a scalar."""
        logits = functional.linear(hidden, weight, bias).float()
        wanted = logits.gather(1, labels[:, None])[:, 0]
        if smoothing:
            wanted = (1.0 - smoothing) * wanted + smoothing * logits.mean(dim=1)
        largest = logits.amax(dim=1)
        log_sums = logits.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest)
        ctx.smoothing = smoothing
        ctx.save_for_backward(hidden, weight, bias, labels, log_sums)
        return (log_sums - wanted).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits is their softmax minus the wanted distribution."""
        hidden, weight, bias, labels, log_sums = ctx.saved_tensors
        of_hidden, of_weight, of_bias, *_ = ctx.needs_input_grad
        softmax = functional.linear(hidden, weight, bias).float().sub_(log_sums[:, None]).exp_()
        if ctx.smoothing:
            softmax.sub_(ctx.smoothing / softmax.shape[1])
        ones = torch.full_like(labels[:, None], ctx.smoothing - 1.0, dtype=softmax.dtype)
        of_logits = softmax.scatter_add_(1, labels[:, None], ones).mul_(gradient).to(hidden.dtype)
        return (
            of_logits @ weight if of_hidden else None,
            of_logits.T @ hidden if of_weight else None,
            of_logits.sum(dim=0) if of_bias else None,
            None,
            None,
        )


def defer_logits(model: Any) -> None:
    """Make the model return DeferredLogits. Parameters keep their names. Raises ChunkingError."""
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ChunkingError(f"its output layer is a {type(head).__name__}, not a plain linear layer")
    if hasattr(head.weight, "ds_id"):
        raise ChunkingError("ZeRO stage 3 keeps only a part of the output layer")
    layer: nn.Linear = head

    def forward(hidden: torch.Tensor) -> DeferredLogits:
        return DeferredLogits(hidden, layer)

    vars(head)["forward"] = forward
