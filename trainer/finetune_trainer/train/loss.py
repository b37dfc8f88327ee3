"""The loss of both tasks, normalised over the whole global batch.

transformers normalises a classifier's loss per micro batch but scales it as if it had been normalised over the batch
(its models accept `num_items_in_batch` and ignore it), which multiplies the gradient by the number of ranks. So the
loss is computed here, from the logits, for every model alike.
"""

import torch
from torch.nn import functional

IGNORED = -100
"""Label of a token that is not learnt: padding, a prompt."""


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Summed cross entropy of the rows that have a label. `logits` (rows, classes), `labels` (rows,)."""
    return functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )


def causal_lm_loss(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Summed cross entropy of every next token. `logits` (rows, tokens, vocabulary), `labels` (rows, tokens).

    The labels are moved, not the logits: cutting the logits' last position would copy the largest tensor of the step.
    """
    targets = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def causal_lm_targets(labels: torch.Tensor) -> int:
    """Number of tokens that `causal_lm_loss` sums over."""
    return int((labels[:, 1:] != IGNORED).sum())
