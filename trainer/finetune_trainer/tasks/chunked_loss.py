"""The loss of a language model without the logits of all tokens, `spec.training.chunkedLoss`.

The logits are the largest tensor of a step with a large vocabulary. Here the output layer returns its input, and the
loss multiplies parts of it with the weights, only for tokens that carry loss; the backward pass computes each part
again. `torch.nn.functional.linear_cross_entropy` does the same, but sums in the data type of the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .base import IGNORED, LOSS_CHUNK_BYTES
from .forward import cross_entropy


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
        wanted = targets != IGNORED
        hidden, labels = self.hidden[wanted], targets[wanted]
        size = max(1, LOSS_CHUNK_BYTES // (4 * self.head.weight.shape[0]))
        parts = zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
        losses = [
            checkpoint(_chunk_loss, part, self.head.weight, self.head.bias, label, smoothing, use_reentrant=False)
            for part, label in parts
        ]
        # Without targets, the loss is 0 and every parameter has a gradient, as that of the plain loss.
        return torch.stack(losses).sum() if losses else (hidden.float().sum() + 0.0 * self.head.weight.float().sum())


def _chunk_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return cross_entropy(functional.linear(hidden, weight, bias), labels, smoothing=smoothing)


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
