"""Token classification: a label for each word of a text, such as names of people and places.

A word's label is predicted at its first token; its other tokens have no target. This is how J. Devlin et al., "BERT"
(NAACL 2019), section 5.3, fine-tune for named entities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_api.v1alpha1 import Metric, Task

from .base import (
    IGNORED,
    TASKS,
    Batch,
    Collate,
    Measured,
    Report,
    Split,
    TestSplit,
    TrainingTask,
    ValidationScores,
    WeightedMean,
)
from .forward import batches, cross_entropy
from .metrics import classification_metrics


@TASKS.register
class TokenClassification(TrainingTask):
    """`logits` are (rows, tokens, classes), `labels` class ids of shape (rows, tokens)."""

    name = Task.TOKEN_CLASSIFICATION
    auto_class = "AutoModelForTokenClassification"
    head_types = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"
    needs_decoder = False
    may_draw_head = True
    needs_pad_token = True  # fairseq's encoders count positions from it
    has_token_logits = False
    has_one_target_per_row = False
    scores_are_answers = False  # the words of a text depend on each other, so the paired test compares losses of texts
    labelled = "token"
    limits = (
        "Figures count single words by the prediction at their first token; whole entities were not compared.",
        "It was trained on words with a space between them. Other texts have to be divided into words in the same way.",
    )

    def config_settings(self, labels: tuple[str, ...], pad_token_id: int | None) -> dict[str, Any]:
        """Names of the labels, and the pad id."""
        settings: dict[str, Any] = {"pad_token_id": pad_token_id}
        if labels:
            settings |= {
                "num_labels": len(labels),
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
            }
        return settings

    @property
    def encode(self) -> Any:
        """One row for each text, cut to `max_length`; the first token of each span carries its label."""
        from ..data.tokenise import encode_labelled_spans

        return encode_labelled_spans

    def collate_labels(self, rows: Sequence[Mapping[str, Any]], width: int) -> npt.NDArray[np.int64]:
        """Shape (rows, width)."""
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for index, row in enumerate(rows):
            labels[index, : len(row["labels"])] = row["labels"]
        return labels

    def padding_labels(self) -> npt.NDArray[np.int64]:
        """Of one token."""
        return np.full(1, IGNORED, dtype=np.int64)

    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Whether any token has a label."""
        return bool((row["labels"] != IGNORED).any())

    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of the tokens that have a label, in nats."""
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), smoothing=smoothing)

    def targets(self, batch: Batch) -> int:
        """Tokens that have a label."""
        return int((batch["labels"] != IGNORED).sum())

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """Accuracy and macro F1 over tokens."""
        del rows
        return _Counts(len(labels))

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss, accuracy and macro F1 over tokens, figures of every class and the confusion matrix."""
        found = tag(model, split, collate, report)
        metrics = classification_metrics(found.predictions, found.targets, labels)
        right = np.bincount(found.rows[found.predictions == found.targets], minlength=len(split)).astype(np.float64)
        has_tokens = found.tokens > 0
        return Measured(
            metrics={Metric.LOSS: float(found.losses.sum() / found.tokens.sum())} | metrics.figures,
            examples=len(split),
            scores=found.losses[has_tokens] / found.tokens[has_tokens],
            tokens=int(found.tokens.sum()),
            classification=metrics,
            mean=WeightedMean(right, found.tokens.astype(np.float64), {Metric.ACCURACY: float}),
        )

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Mean over the tokens that have a label; every row has to have one."""
        found = tag(model, split, collate, report)
        return found.losses / found.tokens


class _Counts(ValidationScores):
    """Of each class: tokens that were found, that have it as label, and that were given it; shape (3, classes)."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros((3, classes), dtype=torch.int64)

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor, batch: Batch) -> None:
        del rows
        has_label = batch["labels"] != IGNORED
        expected, predicted = batch["labels"][has_label].cpu(), logits.argmax(-1)[has_label].cpu()
        classes = self._counts.shape[1]
        for row, ids in enumerate((expected[expected == predicted], expected, predicted)):
            self._counts[row] += torch.bincount(ids, minlength=classes)

    def tensors(self) -> list[torch.Tensor]:
        return [self._counts]

    def metrics(self, loss: float) -> dict[Metric, float]:
        found, expected, given = self._counts.double()
        occurs = expected + given > 0
        f1 = 2 * found[occurs] / (expected + given)[occurs]
        accuracy = found.sum() / expected.sum()
        return {Metric.LOSS: loss, Metric.ACCURACY: float(accuracy), Metric.MACRO_F1: float(f1.mean())}


@dataclass(frozen=True)
class Tagged:
    """What a token classifier answered. T tokens with a label in R rows, in the order of batches."""

    predictions: npt.NDArray[np.int64]
    """(T,)"""
    targets: npt.NDArray[np.int64]
    """(T,)"""
    rows: npt.NDArray[np.int64]
    """(T,): the row of each token."""
    losses: npt.NDArray[np.float64]
    """(R,): cross-entropy in nats, summed over the tokens with a label."""
    tokens: npt.NDArray[np.int64]
    """(R,): tokens with a label."""


@torch.inference_mode()
def tag(model: torch.nn.Module, split: Split, collate: Collate, report: Report) -> Tagged:
    """Predictions and losses of a token classifier; `model` is left in evaluation mode."""
    model.eval()
    predictions, targets, places = ([np.zeros(0, np.int64)] for _ in range(3))
    losses, tokens = np.zeros(len(split), np.float64), np.zeros(len(split), np.int64)
    for rows, batch in batches(model, split, collate, report):
        labels = batch.pop("labels")
        has_label = labels != IGNORED
        logits = model(**batch).logits[has_label].float()
        place = rows[has_label.nonzero()[:, 0].cpu().numpy()]
        each = cross_entropy(logits, labels[has_label], reduction="none").double().cpu().numpy()
        losses += np.bincount(place, each, minlength=len(split))
        tokens += np.bincount(place, minlength=len(split))
        predictions.append(logits.argmax(-1).cpu().numpy())
        targets.append(labels[has_label].cpu().numpy())
        places.append(place)
    return Tagged(np.concatenate(predictions), np.concatenate(targets), np.concatenate(places), losses, tokens)
