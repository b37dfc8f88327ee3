"""Causal language models: the next token, wherever the data asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_api.v1alpha1 import Task

from .base import (
    IGNORED,
    TASKS,
    Batch,
    Collate,
    Measured,
    Report,
    Split,
    TestSplit,
    ValidationScores,
)
from .chunked_loss import DeferredLogits
from .forward import batches, cross_entropy
from .language import DecoderTask, PerplexityScores, measured_texts, next_tokens, tokens_within_room, vocabulary_of


@TASKS.register
class CausalLM(DecoderTask):
    """`logits` are (rows, tokens, vocabulary), `labels` token ids of shape (rows, tokens): those of the inputs, or
    IGNORED."""

    name = Task.CAUSAL_LM
    no_head_advice = "use a base model with a language-modeling head, or set spec.model.task to SequenceClassification"
    scores_are_answers = False
    limits = (
        "Perplexity measures how well the model foresees the test split's text, not whether its answers are right, "
        "helpful or safe; neither was evaluated.",
    )

    @property
    def encode(self) -> Any:
        """Rows whose flags say which tokens carry loss; those without any are left out and counted."""
        from ..data.tokenize import encode_language

        return encode_language

    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Whether any token but the first, which is never predicted, carries loss."""
        return bool((row["labels"][1:] != IGNORED).any())

    def loss(self, logits: torch.Tensor | DeferredLogits, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of every next token that carries loss, in nats."""
        targets = next_tokens(batch["labels"])
        if isinstance(logits, DeferredLogits):
            return logits.loss(targets, smoothing=smoothing)
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), smoothing=smoothing)

    def targets(self, batch: Batch) -> int:
        """Tokens that carry loss and have one before them."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """Perplexity."""
        del rows, labels
        return PerplexityScores()

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss and perplexity."""
        del labels
        found = likelihood(model, split, collate, report, vocabulary=vocabulary_of(model))
        units = split.units()
        return measured_texts(split, found.losses, found.tokens if units is None else units)

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Mean over the tokens that carry loss; every row has to have one."""
        found = likelihood(model, split, collate, report, vocabulary=vocabulary_of(model))
        return found.losses / found.tokens


@dataclass(frozen=True)
class Likelihood:
    """How likely a language model found each row, in the order of the split; arrays of shape (rows,)."""

    losses: npt.NDArray[np.float64]
    """Negative log-likelihood in nats, summed over the tokens that carry loss."""
    tokens: npt.NDArray[np.int64]
    """Tokens that carry loss."""


@torch.inference_mode()
def likelihood(
    model: torch.nn.Module, split: Split, collate: Collate, report: Report, *, vocabulary: int
) -> Likelihood:
    """Loss of each row under a causal language model; `vocabulary` is the width of its logits.

    A row whose logits would not fit the room is fed in pieces that attend to the earlier ones through the key-value
    cache: the same figures, bounded memory.
    """
    model.eval()
    losses, tokens = np.zeros(len(split), np.float64), np.zeros(len(split), np.int64)
    piece = tokens_within_room(model, vocabulary)
    for rows, batch in batches(model, split, collate, report, max_tokens=piece):
        targets = batch["labels"][:, 1:]  # position t predicts token t + 1
        tokens[rows] = (targets != IGNORED).sum(dim=1).cpu().numpy()
        if batch["input_ids"].numel() > piece:
            losses[rows] = _loss_in_pieces(model, batch["input_ids"], targets, piece)
        else:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            losses[rows] = _summed_loss(logits[:, :-1], targets)
    return Likelihood(losses, tokens)


def _loss_in_pieces(
    model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor, piece: int
) -> npt.NDArray[np.float64]:
    """The loss of one row, shape (1,); `ids` is (1, length) without padding, `targets` (1, length - 1)."""
    cache, total = None, np.zeros(1, np.float64)
    for start in range(0, targets.shape[1], piece):
        output = model(input_ids=ids[:, start : start + piece], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        wanted = targets[:, start : start + piece]
        total += _summed_loss(output.logits[:, : wanted.shape[1]], wanted)
    return total


def _summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> npt.NDArray[np.float64]:
    """Summed loss of each row; logits (rows, length, vocabulary), targets (rows, length)."""
    wanted = targets != IGNORED
    each = cross_entropy(logits[wanted], targets[wanted], reduction="none").double()
    rows = wanted.nonzero()[:, 0]
    return (
        torch.zeros(targets.shape[0], dtype=torch.float64, device=each.device).index_add_(0, rows, each).cpu().numpy()
    )
