"""Checks in the prepare stage whether a model keeps the examples of a pack apart.

Attention layers of transformers find the examples of a row by its position ids, which begin at 0 with each of them.
Layers that carry a state along the row (state space, linear attention, convolutions) do not, and some models count
positions from the start of the row or do not take position ids. Which ones depends on the version of transformers, so
the class of the model is built with random weights, and the logits of texts in one row are compared with those of each
text alone.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BadConfigError
from ..tasks.base import TrainingTask, join_rows
from .small_models import SPECIAL_TOKENS, VOCABULARY, UncheckedError, small_models

TOLERANCE = 1e-3
"""Maximum difference of a logit, as a share of the largest one. Rounding causes 1e-6 to 1e-4, mixed texts over 1e-1."""

_TOKENS = 24
"""Width of the checked row."""


def check_packs(model_class: Any, config: Any, uri: str, task: TrainingTask, *, capacity: int) -> None:
    """Raise BadConfigError unless the model keeps the examples of packs of `capacity` tokens apart."""
    name = f"{model_class.__name__}, the class of {uri},"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for model in small_models(model_class, config, capacity=capacity):
            try:
                _check_logits(model, name, task, capacity)
            except UncheckedError:
                continue
            return
    raise _refusal(f"it could not be checked whether {name} keeps the examples of a pack apart")


def _refusal(reason: str) -> BadConfigError:
    return BadConfigError(
        f"spec.training.batching must not be Packed for this base model: {reason}",
        advice="set spec.training.batching: Padded or LengthGrouped, or use another base model",
    )


@torch.inference_mode()
def _check_logits(model: Any, name: str, task: TrainingTask, capacity: int) -> None:
    """Raise BadConfigError if the logits of texts in packs are not those of each text alone.

    Raises UncheckedError if the model cannot compute a text alone, or if mixed texts would have the same logits.
    """
    width = min(_TOKENS, capacity)
    rows = [_row(length) for length in (width // 2, width // 3, width // 4)]
    packs = [join_rows(rows[:2]), join_rows(rows[2:])]  # the second one is padded
    try:
        alone = [_logits(model, task, [row])[0] for row in rows]
        mixed = _logits(model, task, [_row_of(packs[0]["input_ids"])])[0, len(rows[0]["input_ids"]) :]
    except Exception as error:
        raise UncheckedError from error
    largest = max(float(logits.abs().max()) for logits in alone)
    if not _difference(mixed, alone[1]) > 10 * TOLERANCE * largest:
        raise UncheckedError
    try:
        packed = _logits(model, task, packs)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise _refusal(f"{name} cannot compute several examples in one row: {reason}") from error
    first, second, third = (len(row["input_ids"]) for row in rows)
    found = [packed[0, :first], packed[0, first : first + second], packed[1, :third]]
    difference = max(_difference(one, other) for one, other in zip(found, alone, strict=True)) / largest
    if not difference <= TOLERANCE:
        raise _refusal(
            f"{name} does not keep the examples of a pack apart: the logits of texts in one row differ from those of "
            f"each text alone by {difference:.1g} of the largest logit (at most {TOLERANCE:.0e} is allowed)"
        )


def _row(length: int) -> dict[str, Any]:
    return _row_of(torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (length,)).numpy())


def _row_of(tokens: Any) -> dict[str, Any]:
    return {"input_ids": tokens, "labels": tokens}


def _logits(model: Any, task: TrainingTask, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    logits: torch.Tensor = model(**task.inputs(task.collate(rows, 0))).logits
    return logits


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference; NaN counts as infinite."""
    return float((logits - expected).abs().max().nan_to_num(nan=torch.inf))
