"""Checks in the prepare stage whether a model computes the same with quantized layers.

Some models read the weight of a linear layer themselves (routers of experts, state-space models), or change it in
place. A quantized weight has other values there, or another shape. Which classes do depends on the version of
transformers, so a small model of the class is built with random weights and loaded twice: with quantized layers, and
with layers that have the same values.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from finetune_api.v1alpha1 import Dtype, Quantization, Task

from ..errors import BadConfigError
from ..tasks import TASKS
from .load import load_model
from .quantize import BaseQuantization
from .small_models import SPECIAL_TOKENS, VOCABULARY, small_models

TOLERANCE = 1e-3
"""Maximum difference of the logits, as a share of the largest. Rounding causes 1e-6."""
_TOKENS = 16
_LABELS = ("a", "b")


def check_quantization(model_class: Any, config: Any, uri: str, task: Task) -> None:
    """Raise BadConfigError unless a model of the class computes with quantized layers what it computes with their
    values.

    8 bits are checked for every kind: layers of any width can have them, and both kinds have the same layers.
    """
    name = f"{model_class.__name__}, the class of {uri}"
    with torch.random.fork_rng(devices=[]), torch.no_grad(), TemporaryDirectory() as temporary:
        torch.manual_seed(0)
        tokens = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (1, _TOKENS))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        for number, model in enumerate(small_models(model_class, config, capacity=_TOKENS)):
            folder = Path(temporary) / str(number)
            try:
                model.save_pretrained(folder)
                plain = _loaded(folder, task, dequantized=True)(**inputs).logits
            except Exception:  # noqa: BLE001 - modeling files raise any exception
                continue  # the next size may work
            try:
                quantized = _loaded(folder, task, dequantized=False)
                found = quantized.eval()(**inputs).logits
                quantized.train()(**inputs)
            except Exception as error:
                raise _refusal(f"{name}: {type(error).__name__}: {str(error)[:200]}") from error
            if not (found - plain).abs().max() <= TOLERANCE * plain.abs().max():
                raise _refusal(f"{name} reads the weights of its linear layers itself")
            return
    raise _refusal(f"it could not be checked with {name}")


def _loaded(folder: Path, task: Task, *, dequantized: bool) -> Any:
    labels = _LABELS if TASKS[task].support.has_labels else ()
    how = BaseQuantization(Quantization.INT8, dequantized=dequantized)
    return load_model(folder, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=0, quantization=how).eval()


def _refusal(reason: str) -> BadConfigError:
    return BadConfigError(
        f"spec.model.quantization must be absent for this base model: {reason}",
        advice="remove spec.model.quantization, or use another base model",
    )
