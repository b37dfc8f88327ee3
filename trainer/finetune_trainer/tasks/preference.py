"""Preference tuning: which of two answers to a prompt is the better one.

Training uses direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7). The reference model
is the base model: the same process computes it without the adapter, so no second copy of the weights exists.

Models are measured without a reference, so that the base model and an exported model can be compared: by the mean
log-probability per token of the chosen answer minus that of the rejected one, the margin of a pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune_api.v1alpha1 import Dpo, Metric, Task, Training

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
from .language import DecoderTask, next_tokens, tokens_within_room, vocabulary_of

_REFERENCE = "reference"
"""Tensor of a batch: log-probability of the chosen answer minus that of the rejected one in the base model, (rows,)."""


@TASKS.register
class Preference(DecoderTask):
    """A row has two texts. `input_ids` and `labels` of a batch are (2 * rows, tokens): the chosen and the rejected text
    of a row one after the other. `labels` are token ids, or IGNORED outside of the answers."""

    name = Task.PREFERENCE
    no_head_advice = "use a base model with a language-modeling head"
    has_one_target_per_row = True
    scores_are_answers = True
    padding_tokens = 2
    limits = (
        "The accuracy says how often the model finds the chosen answer of a pair more likely, per token, than the "
        "rejected one. It does not say whether answers that the model writes itself are right, helpful or safe.",
    )

    @property
    def encode(self) -> Any:
        """Pairs; those of which an answer has no token are left out and counted."""
        from ..data.tokenize import encode_pairs

        return encode_pairs

    def training_task(self, training: Training) -> TrainingTask:
        """DPO."""
        return DirectPreference(training.dpo or Dpo())

    def collate(
        self, rows: Sequence[Mapping[str, Any]], pad_token_id: int, *, multiple: int = 1
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` have shape (2 * rows, width)."""
        texts = [
            {name: row[name][part] for name in ("input_ids", "labels")}
            for row in rows
            for part in (slice(row["first_length"]), slice(row["first_length"], None))
        ]
        return super().collate(texts, pad_token_id, multiple=multiple)

    def padding_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Two texts of one token."""
        padding = super().padding_row(row)
        return {name: np.concatenate([values, values]) for name, values in padding.items()} | {"first_length": 1}

    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Whether both answers have a token."""
        first = row["first_length"]
        return all(bool((labels[1:] != IGNORED).any()) for labels in (row["labels"][:first], row["labels"][first:]))

    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """-log sigmoid(margin), summed over the pairs, with the margin per token that models are measured by."""
        assert not smoothing, "spec.training.labelSmoothing is refused with pairs"
        return -functional.logsigmoid(margins(logits, batch)[has_pairs(batch)]).sum()

    def targets(self, batch: Batch) -> int:
        """Pairs."""
        return int(has_pairs(batch).sum())

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """Accuracy and margin."""
        del labels
        return _Margins(rows)

    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Loss, accuracy and margin, without a reference model."""
        del labels
        found = _margins_of(model, split, collate, report)
        losses, right = _losses(found), found > 0
        ones = np.ones(len(found))
        return Measured(
            metrics={Metric.LOSS: float(losses.mean())} | _figures(found),
            examples=len(found),
            scores=right.astype(np.float64),
            shares={Metric.ACCURACY: (int(right.sum()), right.size)},
            means=(
                WeightedMean(losses, ones, {Metric.LOSS: float}),
                WeightedMean(found, ones, {Metric.MARGIN: float}),
            )
            if np.isfinite(found).all()
            else (),
        )

    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """The loss of each pair that models are measured by."""
        return _losses(_margins_of(model, split, collate, report))


class DirectPreference(Preference):
    """DPO: the log-probabilities of both answers, compared with those of the base model."""

    def __init__(self, settings: Dpo) -> None:
        self._beta = settings.beta

    def reference(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Differences of the log-probabilities in the base model, (rows,), without dropout. No random number is drawn,
        and nothing of it is saved."""
        with torch.no_grad(), _base_model(model):
            logits = model(**self.inputs(batch)).logits
            return {_REFERENCE: differences(logits, batch)}

    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """-log sigmoid(beta * (difference - reference)), summed over the pairs. Each difference is the log-probability
        of the chosen answer minus that of the rejected one, summed over their tokens."""
        assert not smoothing, "spec.training.labelSmoothing is refused with pairs"
        gains = differences(logits, batch) - batch[_REFERENCE]
        return -functional.logsigmoid(self._beta * gains[has_pairs(batch)]).sum()


def log_probabilities(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the log-probabilities of the tokens of each answer in nats, and their number, both (rows, 2)."""
    targets = next_tokens(batch["labels"])
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return -losses.sum(dim=1).view(-1, 2), (targets != IGNORED).sum(dim=1).view(-1, 2)


def differences(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of the chosen answer minus that of the rejected one, (rows,)."""
    sums, _ = log_probabilities(logits, batch)
    return sums[:, 0] - sums[:, 1]


def margins(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean log-probability per token of the chosen answer minus that of the rejected one, (rows,)."""
    sums, tokens = log_probabilities(logits, batch)
    means = sums / tokens.clamp(min=1)
    return means[:, 0] - means[:, 1]


def has_pairs(batch: Batch) -> torch.Tensor:
    """Which rows have two answers, (rows,): all but padding rows."""
    found: torch.Tensor = (batch["labels"][:, 1:] != IGNORED).any(dim=1).view(-1, 2).all(dim=1)
    return found


@contextmanager
def _base_model(model: Any) -> Iterator[None]:
    """Switch the adapter and dropout off."""
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train()


def _margins_of(model: Any, split: Split, collate: Collate, report: Report) -> npt.NDArray[np.float64]:
    """The margin of each row of a split, (rows,); `model` is left in evaluation mode."""
    model.eval()
    found = np.zeros(len(split), np.float64)
    room = tokens_within_room(model, vocabulary_of(model))
    with torch.inference_mode():
        for rows, batch in batches(model, split, collate, report, max_tokens=room):
            inputs = {name: batch[name] for name in Preference.model_inputs}
            found[rows] = margins(model(**inputs, use_cache=False).logits, batch).double().cpu().numpy()
    return found


def _losses(found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-log sigmoid of each margin."""
    return np.logaddexp(0.0, -found)


def _figures(found: npt.NDArray[np.float64]) -> dict[Metric, float]:
    return {Metric.ACCURACY: float((found > 0).mean()), Metric.MARGIN: float(found.mean())}


class _Margins(ValidationScores):
    """The margin of every row; a row that is not this rank's is 0 until the ranks are summed."""

    def __init__(self, rows: int) -> None:
        self._margins = torch.zeros(rows, dtype=torch.float64)

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor, batch: Batch) -> None:
        self._margins[rows] = margins(logits, batch).double().cpu()

    def tensors(self) -> list[torch.Tensor]:
        return [self._margins]

    def metrics(self, loss: float) -> dict[Metric, float]:
        return {Metric.LOSS: loss} | _figures(self._margins.numpy())
