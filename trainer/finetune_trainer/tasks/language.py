"""What language models of both kinds share: metrics of texts, and the room for logits over the vocabulary."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune_api.v1alpha1 import Metric

from .base import IGNORED, Measured, TestSplit, TokenTask, ValidationScores, WeightedMean
from .forward import device_of
from .metrics import perplexity

LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Room for the 32-bit logits of one batch. Larger batches gain nothing on a CPU, where 256 MiB is beyond any cache."""


class DecoderTask(TokenTask):
    """A task of models that write. The token at position t + 1 is the target of the logits at position t."""

    auto_class = "AutoModelForCausalLM"
    head_types = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    peft_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    needs_decoder = True
    may_draw_head = False
    needs_pad_token = False
    has_token_logits = True


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Targets of the logits, for labels of shape (rows, tokens); IGNORED at the last position.

    The labels are shifted, not the logits: to cut the last position of the logits would copy the largest tensor of the
    step.
    """
    return functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def vocabulary_of(model: Any) -> int:
    """Width of the logits."""
    return int(model.config.get_text_config().vocab_size)


def tokens_within_room(model: torch.nn.Module, vocabulary: int) -> int:
    """Tokens whose logits fit into the room; at least one."""
    return max(1, LOGITS_BYTES[device_of(model).type] // (4 * vocabulary))


class PerplexityScores(ValidationScores):
    """Loss and perplexity."""

    def metrics(self, loss: float) -> dict[Metric, float]:
        """Both, given the mean loss per token."""
        return {Metric.LOSS: loss, Metric.PERPLEXITY: perplexity(loss)}


def measured_texts(split: TestSplit, losses: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64]) -> Measured:
    """Loss and perplexity of a split, given the summed loss of each row and what it is divided by; both (rows,).

    The rows of one text depend on each other: intervals and the paired test count texts.
    """
    _, text = np.unique(split.documents(), return_inverse=True)
    text_losses: npt.NDArray[np.float64] = np.bincount(text, losses).astype(np.float64)
    text_tokens: npt.NDArray[np.float64] = np.bincount(text, tokens).astype(np.float64)
    loss = float(text_losses.sum() / max(1, text_tokens.sum()))
    with_targets = text_tokens > 0
    return Measured(
        metrics={Metric.LOSS: loss, Metric.PERPLEXITY: perplexity(loss)},
        examples=len(text_tokens),
        scores=text_losses[with_targets] / text_tokens[with_targets],
        tokens=int(tokens.sum()),
        means=(WeightedMean(text_losses, text_tokens, _OF_LOSS),) if math.isfinite(loss) else (),
    )


_OF_LOSS: dict[Metric, Callable[[float], float]] = {Metric.LOSS: float, Metric.PERPLEXITY: perplexity}
