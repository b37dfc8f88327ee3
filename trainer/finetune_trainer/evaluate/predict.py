"""Forward passes over the test split. Needs torch; holds the logits of one batch at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from .batches import batches_by_length

IGNORED = -100
"""Label of a token that is not to be predicted: the prompt, the padding."""

_LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Room for the 32-bit logits of one batch. Larger batches gain nothing on a CPU, where 256 MiB is beyond any cache."""

_BATCH_TOKENS = {"cpu": 2**12, "cuda": 2**16}
_BATCH_ROWS = {"cpu": 64, "cuda": 512}

Report = Callable[[int], None]
"""Told how many examples are done."""


class Examples(Protocol):
    """A split as TokenDataset gives it."""

    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class ClassifierOutput:
    """What a classifier said, in the order of the split; arrays of shape (examples,)."""

    predictions: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]
    """Cross-entropy in nats."""


@dataclass(frozen=True)
class LanguageOutput:
    """How likely a language model found each example, in the order of the split; arrays of shape (examples,)."""

    losses: npt.NDArray[np.float64]
    """Negative log-likelihood in nats, summed over the label tokens."""
    tokens: npt.NDArray[np.int64]
    """Label tokens."""


@torch.inference_mode()
def classify(model: torch.nn.Module, examples: Examples, collate: Collate, report: Report) -> ClassifierOutput:
    """Predictions and losses of a sequence classifier; `model` is left in evaluation mode."""
    model.eval()
    size = len(examples)
    predictions, targets = np.zeros(size, np.int64), np.zeros(size, np.int64)
    losses = np.zeros(size, np.float64)
    kind = _device(model).type
    for rows, batch in _batches(model, examples, collate, _BATCH_TOKENS[kind], report):
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()  # (rows, labels)
        predictions[rows] = logits.argmax(dim=-1).cpu().numpy()
        targets[rows] = labels.cpu().numpy()
        losses[rows] = cross_entropy(logits, labels, reduction="none").double().cpu().numpy()
    return ClassifierOutput(predictions, targets, losses)


@torch.inference_mode()
def likelihood(
    model: torch.nn.Module, examples: Examples, collate: Collate, report: Report, *, vocabulary: int
) -> LanguageOutput:
    """Loss of each example under a causal language model; `vocabulary` is the width of its logits.

    An example whose logits would not fit the room is fed in pieces that attend to the earlier ones through the
    key-value cache: the same figures, bounded memory.
    """
    model.eval()
    losses, tokens = np.zeros(len(examples), np.float64), np.zeros(len(examples), np.int64)
    kind = _device(model).type
    piece = max(1, _LOGITS_BYTES[kind] // (4 * vocabulary))
    for rows, batch in _batches(model, examples, collate, min(piece, _BATCH_TOKENS[kind]), report):
        targets = batch["labels"][:, 1:]  # position t predicts token t + 1
        tokens[rows] = (targets != IGNORED).sum(dim=1).cpu().numpy()
        if batch["input_ids"].numel() > piece:
            losses[rows] = _loss_in_pieces(model, batch["input_ids"], targets, piece)
        else:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            losses[rows] = _summed_loss(logits[:, :-1], targets)
    return LanguageOutput(losses, tokens)


def _loss_in_pieces(
    model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor, piece: int
) -> npt.NDArray[np.float64]:
    """The loss of one example, shape (1,); `ids` is (1, length) without padding, `targets` (1, length - 1)."""
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
    each = cross_entropy(logits[wanted].float(), targets[wanted], reduction="none").double()
    rows = wanted.nonzero()[:, 0]
    return (
        torch.zeros(targets.shape[0], dtype=torch.float64, device=each.device).index_add_(0, rows, each).cpu().numpy()
    )


def _batches(
    model: torch.nn.Module, examples: Examples, collate: Collate, max_tokens: int, report: Report
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, torch.Tensor]]]:
    device = _device(model)
    done = 0
    for rows in batches_by_length(examples.lengths, max_tokens=max_tokens, max_rows=_BATCH_ROWS[device.type]):
        batch = collate([examples[int(row)] for row in rows])
        yield rows, {name: tensor.to(device) for name, tensor in batch.items()}
        done += len(rows)
        report(done)


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
