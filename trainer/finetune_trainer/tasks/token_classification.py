"""Token classification: a label for each word of a text, such as names of people and places.

A word's label is predicted at its first token; its other tokens have no target. This is how J. Devlin et al., "BERT"
(NAACL 2019), section 5.3, fine-tune for named entities.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_api.v1alpha1 import Metric, Task

from .base import (
    IGNORED,
    TASKS,
    Batch,
    Classified,
    Collate,
    Measured,
    Report,
    Split,
    TestSplit,
    TokenTask,
    ValidationScores,
    WeightedMean,
)
from .entities import EntityLabels, entity_counts, entity_f1
from .forward import classify, cross_entropy
from .metrics import classification_metrics


@TASKS.register
class TokenClassification(TokenTask):
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
    scores_are_answers = False  # the words of a text depend on each other, so the paired test compares losses of texts
    labeled = "token"
    limits = (
        "Metrics of classes, accuracy and macro F1 count single words, by the prediction at their first token.",
        "It was trained on words with a space between them. Other texts must be divided into words in the same way.",
    )

    @property
    def encode(self) -> Any:
        """One row for each text, cut to `max_length`; the first token of each span carries its label."""
        from ..data.tokenize import encode_labeled_spans

        return encode_labeled_spans

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
        """Accuracy and macro F1 over tokens, and F1 over entities."""
        del rows
        return _Counts(labels)

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss, accuracy and macro F1 over tokens, F1 over entities, metrics of every class and the confusion matrix.

        A word without a target, such as one that was cut off, belongs to no entity.
        """
        return self.score(classify(model, split, collate, report), len(split), labels)

    def score(self, found: Classified, rows: int, labels: tuple[str, ...]) -> Measured:
        """The metrics of `measure`."""
        metrics = classification_metrics(found.predictions, found.targets, labels)
        per_row = partial(np.bincount, found.rows, minlength=rows)
        tokens, losses = per_row(), per_row(found.losses)
        right = per_row(found.predictions == found.targets).astype(np.float64)
        entities = entity_counts(found.predictions, found.targets, found.rows, EntityLabels.of(labels), rows)
        f1 = {Metric.ENTITY_F1: entity_f1(*entities.sum(axis=1).tolist())}
        return Measured(
            metrics={Metric.LOSS: float(found.losses.mean())} | metrics.figures | f1,
            examples=rows,
            scores=losses[tokens > 0] / tokens[tokens > 0],
            tokens=found.targets.size,
            classification=metrics,
            means=(
                WeightedMean(right, tokens.astype(np.float64), {Metric.ACCURACY: float}),
                # F1 is a share: of all entities of targets and predictions, those that both have.
                WeightedMean(2.0 * entities[0], 1.0 * (entities[1] + entities[2]), {Metric.ENTITY_F1: float}),
            ),
        )

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Mean over the tokens that have a label; every row has to have one."""
        found = classify(model, split, collate, report)
        return np.bincount(found.rows, found.losses) / np.bincount(found.rows)


class _Counts(ValidationScores):
    """Tokens of each class, shape (3, classes), and entities, shape (3,): those that were found, those of the targets,
    and those of the predictions."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = EntityLabels.of(labels)
        self._counts = torch.zeros((3, len(labels)), dtype=torch.int64)
        self._entities = torch.zeros(3, dtype=torch.int64)

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor, batch: Batch) -> None:
        has_label = batch["labels"] != IGNORED
        expected, predicted = batch["labels"][has_label].cpu(), logits.argmax(-1)[has_label].cpu()
        classes = self._counts.shape[1]
        for row, ids in enumerate((expected[expected == predicted], expected, predicted)):
            self._counts[row] += torch.bincount(ids, minlength=classes)
        places = has_label.nonzero()[:, 0].cpu().numpy()
        entities = entity_counts(predicted.numpy(), expected.numpy(), places, self._labels, len(rows))
        self._entities += torch.from_numpy(entities.sum(axis=1))

    def tensors(self) -> list[torch.Tensor]:
        return [self._counts, self._entities]

    def metrics(self, loss: float) -> dict[Metric, float]:
        found, expected, given = self._counts.double()
        occurs = expected + given > 0
        f1 = 2 * found[occurs] / (expected + given)[occurs]
        accuracy = found.sum() / expected.sum()
        return {
            Metric.LOSS: loss,
            Metric.ACCURACY: float(accuracy),
            Metric.MACRO_F1: float(f1.mean()),
            Metric.ENTITY_F1: entity_f1(*self._entities.tolist()),
        }
