"""Masked language models: tokens of a text that were replaced, predicted from both sides. Continues the pre-training of
encoders such as BERT, RoBERTa and DistilBERT.

J. Devlin et al., "BERT" (NAACL 2019), section 3.1 and appendix A.1; tokens are masked by `data/masking.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_api.v1alpha1 import Task

from ..errors import ModelUnusableError
from .base import (
    IGNORED,
    TASKS,
    Batch,
    Collate,
    Measured,
    Report,
    Split,
    StoredSplit,
    TestSplit,
    TokenTask,
    ValidationScores,
)
from .chunked_loss import DeferredLogits
from .forward import classify, cross_entropy
from .language import PerplexityScores, measured_texts, tokens_within_room, vocabulary_of


@TASKS.register
class MaskedLM(TokenTask):
    """`logits` are (rows, tokens, vocabulary), `labels` token ids of shape (rows, tokens): the original ids at the
    positions that are to be predicted, IGNORED at the others."""

    name = Task.MASKED_LM
    auto_class = "AutoModelForMaskedLM"
    head_types = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
    peft_type = None  # PEFT has no class for it, and none is needed
    pipeline_tag = "fill-mask"
    needs_decoder = False
    needs_encoder = True
    may_draw_head = False
    no_head_advice = (
        "use a base model that was saved with its head for masked language modeling, such as bert-base-uncased; "
        "models for embeddings and classifiers have none"
    )
    needs_pad_token = False
    has_token_logits = True
    scores_are_answers = False
    limits = (
        "Perplexity is the exponential of the mean loss of masked tokens, which are 15 % of each text. It cannot be "
        "compared with the perplexity of models that predict the next token.",
    )

    @property
    def encode(self) -> Any:
        """Rows between the tokenizer's special tokens; a text gives as many as it needs."""
        from ..data.tokenize import encode_masked

        return encode_masked

    def masking(self, tokenizer: Any, uri: str) -> Any:
        """The tokenizer's mask token, and the tokens that a token may be replaced by."""
        from ..data.info import Masking
        from ..data.tokenize import special_tokens

        if tokenizer.mask_token_id is None:
            raise ModelUnusableError(
                f"the tokenizer of {uri} has no mask token, which the task {self.name} replaces tokens by",
                advice="use the tokenizer that the base model was trained with (mask_token in tokenizer_config.json), "
                "or another base model",
            )
        special = tuple(sorted(special_tokens(tokenizer)))
        return Masking(mask_token=tokenizer.mask_token_id, vocabulary=len(tokenizer), special_tokens=special)

    def training_rows(self, rows: StoredSplit, *, seed: int, epoch: int) -> Split:
        """Other tokens of a row are masked in every epoch."""
        from ..data.masking import MaskedRows

        return MaskedRows.in_epoch(rows, seed, epoch)

    def held_out_rows(self, rows: StoredSplit) -> TestSplit:
        """The same tokens are masked for every model."""
        from ..data.masking import MaskedRows

        return MaskedRows.held_out(rows)

    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Whether any token is to be predicted."""
        return bool((row["labels"] != IGNORED).any())

    def loss(self, logits: torch.Tensor | DeferredLogits, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of the masked tokens, in nats."""
        if isinstance(logits, DeferredLogits):
            return logits.loss(batch["labels"], smoothing=smoothing)
        # Only the logits of masked tokens are converted to 32 bit.
        wanted = batch["labels"] != IGNORED
        return cross_entropy(logits[wanted], batch["labels"][wanted], smoothing=smoothing)

    def targets(self, batch: Batch) -> int:
        """Masked tokens."""
        return int((batch["labels"] != IGNORED).sum())

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """Perplexity."""
        del rows, labels
        return PerplexityScores()

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss and perplexity of the masked tokens."""
        del labels
        losses, tokens = _losses(model, split, collate, report)
        return measured_texts(split, losses, tokens)

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Mean over the masked tokens; every row has to have one."""
        losses, tokens = _losses(model, split, collate, report)
        return losses / tokens


def _losses(
    model: torch.nn.Module, split: Split, collate: Collate, report: Report
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Summed loss and number of the masked tokens of each row, shape (rows,)."""
    found = classify(model, split, collate, report, max_tokens=tokens_within_room(model, vocabulary_of(model)))
    losses: npt.NDArray[np.float64] = np.bincount(found.rows, found.losses, minlength=len(split)).astype(np.float64)
    tokens: npt.NDArray[np.int64] = np.bincount(found.rows, minlength=len(split)).astype(np.int64)
    return losses, tokens
