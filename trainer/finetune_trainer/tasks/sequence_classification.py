"""Sequence classification: one label for every text.

transformers normalizes a classifier's loss per micro-batch but scales it as if it had been normalized over the batch
(its models accept `num_items_in_batch` and ignore it), which multiplies the gradient by the number of ranks. So the
loss is computed here, from the logits, for every model alike.
"""

from collections.abc import Mapping, Sequence
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
    TrainingTask,
    ValidationScores,
)
from .forward import classify, cross_entropy
from .metrics import classification_metrics


@TASKS.register
class SequenceClassification(TrainingTask):
    """`logits` are (rows, classes), `labels` class ids of shape (rows,)."""

    name = Task.SEQUENCE_CLASSIFICATION
    auto_class = "AutoModelForSequenceClassification"
    head_types = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "SEQ_CLS"
    pipeline_tag = "text-classification"
    needs_decoder = False
    may_draw_head = True
    needs_pad_token = True  # a decoder classifies at the last token that is not padding
    has_token_logits = False
    has_one_target_per_row = True
    scores_are_answers = True

    def config_settings(self, labels: tuple[str, ...], pad_token_id: int | None) -> dict[str, Any]:
        """Also that a text has exactly one label."""
        problem = {"problem_type": "single_label_classification"} if labels else {}
        return super().config_settings(labels, pad_token_id) | problem

    @property
    def encode(self) -> Any:
        """One row for each text, cut to `max_length`, with the tokenizer's own special tokens."""
        from ..data.tokenize import encode_classified

        return encode_classified

    def collate_labels(self, rows: Sequence[Mapping[str, Any]], width: int) -> npt.NDArray[np.int64]:
        """Shape (rows,)."""
        del width
        return np.array([row["labels"] for row in rows], dtype=np.int64)

    def padding_labels(self) -> int:
        """No class."""
        return IGNORED

    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Every row has a label."""
        del row
        return True

    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of the rows that have a label, in nats."""
        return cross_entropy(logits, batch["labels"], smoothing=smoothing)

    def targets(self, batch: Batch) -> int:
        """Rows that have a label."""
        return int((batch["labels"] != IGNORED).sum())

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """Accuracy and macro F1."""
        return _Answers(rows, labels)

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss, accuracy, macro F1, metrics of every class and the confusion matrix."""
        return self.score(classify(model, split, collate, report), len(split), labels)

    def score(self, found: Classified, rows: int, labels: tuple[str, ...]) -> Measured:
        """The metrics of `measure`."""
        del rows
        metrics = classification_metrics(found.predictions, found.targets, labels)
        right = found.predictions == found.targets
        return Measured(
            metrics={Metric.LOSS: float(found.losses.mean())} | metrics.figures,
            examples=right.size,
            scores=right.astype(np.float64),
            classification=metrics,
            shares={Metric.ACCURACY: (int(right.sum()), right.size)},
        )

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Cross-entropy of every row's label."""
        return classify(model, split, collate, report).losses


class _Answers(ValidationScores):
    """Predicted and expected class of every row; a row that is not this rank's is 0 until the ranks are summed."""

    def __init__(self, rows: int, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._answers = torch.zeros((2, rows), dtype=torch.int64)

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor, batch: Batch) -> None:
        self._answers[0, rows] = logits.argmax(-1).cpu()
        self._answers[1, rows] = batch["labels"].cpu()

    def tensors(self) -> list[torch.Tensor]:
        return [self._answers]

    def metrics(self, loss: float) -> dict[Metric, float]:
        predicted, expected = self._answers.numpy()
        return {Metric.LOSS: loss} | classification_metrics(predicted, expected, self._labels).figures
