"""Checks in the prepare stage whether the loss of a model can be computed in parts of its logits.

Some models change the logits after their output layer (scaling, a soft cap), which the parts would not have. Whether a
class does depends on the version of transformers, so a small model of the class is built with random weights, and the
losses of both ways are compared.
"""

from typing import Any

import torch

from ..errors import BadConfigError
from ..tasks.base import TrainingTask
from ..tasks.chunked_loss import defer_logits
from .small_models import SPECIAL_TOKENS, VOCABULARY, small_models

TOLERANCE = 1e-5
"""Maximum difference of the losses, as a share. Rounding causes 1e-7 to 1e-6."""
_TOKENS = 16


def check_chunks(model_class: Any, config: Any, uri: str, task: TrainingTask) -> None:
    """Raise BadConfigError unless the loss in parts is that of the model."""
    name = f"{model_class.__name__}, the class of {uri}"
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        for model in small_models(model_class, config, capacity=_TOKENS):
            tokens = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (_TOKENS,)).numpy()
            batch = task.collate([{"input_ids": tokens, "labels": tokens}], 0)
            try:
                plain = float(task.loss(model(**task.inputs(batch)).logits, batch))
            except Exception:  # noqa: BLE001 - modeling files raise any exception
                continue  # the next size may work
            try:
                defer_logits(model)
                found = float(task.loss(model(**task.inputs(batch)).logits, batch))
            except Exception as error:
                raise _refusal(f"{name}: {type(error).__name__}: {str(error)[:200]}") from error
            if not abs(found - plain) <= TOLERANCE * abs(plain):
                raise _refusal(f"{name} changes the logits after its output layer")
            return
    raise _refusal(f"it could not be checked with {name}")


def _refusal(reason: str) -> BadConfigError:
    return BadConfigError(
        f"spec.training.chunkedLoss must be false for this base model: {reason}",
        advice="remove spec.training.chunkedLoss; to need less memory, lower spec.training.microBatchSize",
    )
