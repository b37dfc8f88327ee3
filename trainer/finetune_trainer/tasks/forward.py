"""Forward passes in batches of similar length, and cross-entropy: what the tasks share that needs torch."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .base import IGNORED, Classified, Collate, Report, Split

_BATCH_TOKENS = {"cpu": 2**12, "cuda": 2**16}
_BATCH_ROWS = {"cpu": 64, "cuda": 512}


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    smoothing: float = 0.0,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """Cross-entropy in nats, in 32 bit. `logits` (targets, classes), `labels` (targets,); IGNORED ones count 0."""
    return functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction=reduction, label_smoothing=smoothing
    )


@torch.inference_mode()
def classify(
    model: torch.nn.Module, split: Split, collate: Collate, report: Report, *, max_tokens: int | None = None
) -> Classified:
    """Predictions and losses of every target of a split; `model` is left in evaluation mode.

    The logits have the shape of the labels, (rows,) or (rows, tokens), and one more axis for the classes. `max_tokens`:
    see `batches`.
    """
    model.eval()
    found: list[tuple[npt.NDArray[Any], ...]] = []
    for rows, batch in batches(model, split, collate, report, max_tokens=max_tokens):
        labels = batch.pop("labels")
        has_label = labels != IGNORED
        logits, targets = model(**batch).logits[has_label].float(), labels[has_label]
        losses = cross_entropy(logits, targets, reduction="none").double()
        places = rows[has_label.nonzero()[:, 0].cpu().numpy()]
        found.append((places, *(tensor.cpu().numpy() for tensor in (logits.argmax(-1), targets, losses))))
    all_rows, *answers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(all_rows, kind="stable")
    all_predictions, all_targets, all_losses = (values[order] for values in answers)
    return Classified(all_predictions, all_targets, all_rows[order], all_losses)


def batches(
    model: torch.nn.Module, split: Split, collate: Collate, report: Report, *, max_tokens: int | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, torch.Tensor]]]:
    """Row numbers and tensors of every batch of a split, on the model's device, the longest rows first.

    A batch has at most `max_tokens` tokens, padded, and never more than the device is usually given.
    """
    device = device_of(model)
    tokens = min(max_tokens or _BATCH_TOKENS[device.type], _BATCH_TOKENS[device.type])
    done = 0
    for rows in batches_by_length(split.lengths, max_tokens=tokens, max_rows=_BATCH_ROWS[device.type]):
        batch = collate([split[int(row)] for row in rows])
        yield rows, {name: tensor.to(device) for name, tensor in batch.items()}
        done += len(rows)
        report(done)


def batches_by_length(
    lengths: npt.NDArray[np.int32], *, max_tokens: int, max_rows: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of batches of similar length, longest first, so that a lack of memory shows at once.

    A batch has at most `max_rows` rows and, padded to its longest, at most `max_tokens` tokens; one example that is
    longer than that is a batch of its own.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < order.size:
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(max_rows, max_tokens // longest))
        yield order[start : start + rows].astype(np.int64)
        start += rows


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the parameters are."""
    return next(model.parameters()).device
