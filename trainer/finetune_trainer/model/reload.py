"""Loads exported folders with the public API of transformers and PEFT, and rejects missing or unused weights.

transformers and PEFT initialize missing weights randomly. For an exported folder this is an error.
"""

import struct
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import Prepared

from ..errors import ExportUnusableError
from ..methods import FineTuningMethod
from ..methods.base import EXPORT_ADVICE
from ..tasks import TASKS


def reload_model(folder: Path, uri: str, prepared: Prepared, **options: Any) -> Any:
    """Load the model of a folder in Hugging Face layout, with labels and head of the folder.

    `uri` is the address of the folder for messages; `options` are further arguments of `from_pretrained`. Raises
    ExportUnusableError.
    """
    from safetensors import SafetensorError

    from .load import TORCH_DTYPES

    try:
        model, found = TASKS[prepared.task].model_class.from_pretrained(
            folder,
            dtype=TORCH_DTYPES[prepared.dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error, SafetensorError) as error:
        raise ExportUnusableError(f"{uri} cannot be reloaded: {error}", advice=EXPORT_ADVICE) from error
    _reject(uri, "lacks weights of its own architecture", found["missing_keys"])
    _reject(uri, "has weights that its architecture does not use", found["unexpected_keys"])
    _reject(
        uri, "has weights with other shapes than in its config.json", [entry[0] for entry in found["mismatched_keys"]]
    )
    _check_labels(model.config, uri, prepared)
    return model


def _check_labels(config: Any, uri: str, prepared: Prepared) -> None:
    if not TASKS[prepared.task].has_labels:
        return
    labels = tuple(config.id2label[index] for index in sorted(config.id2label))
    if labels != prepared.labels:
        raise ExportUnusableError(
            f"{uri} names the labels {', '.join(labels[:4])}, but was trained on {', '.join(prepared.labels[:4])}",
            advice=EXPORT_ADVICE,
        )


def reload_adapter(base: Any, folder: Path, uri: str, prepared: Prepared, method: FineTuningMethod[Any]) -> Any:
    """Load the adapter of a folder into the base model. Raises ExportUnusableError."""
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        loaded = method.load_adapter(base, folder, uri)
        if TASKS[prepared.task].has_labels:
            _check_labels(AutoConfig.from_pretrained(folder), uri, prepared)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ExportUnusableError(f"{uri} cannot be reloaded: {error}", advice=EXPORT_ADVICE) from error
    _reject(uri, "lacks weights of its adapter", loaded.missing)
    _reject(uri, "has weights that its adapter does not use", loaded.unused)
    return loaded.model


def _reject(uri: str, what: str, names: Any) -> None:
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ExportUnusableError(f"{uri} {what}: {len(names)}, first {first}", advice=EXPORT_ADVICE)
