"""Exported folders, loaded as anybody would load them, and refused where a weight is missing or is not used.

transformers and PEFT go on with random values for what a file lacks; after an export that is an error.
"""

import warnings
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import Prepared

from ..errors import ExportUnusableError
from ..tasks import TASKS

_ADVICE = "change spec.runId to train and export again, and report the error with the base model's name if it repeats"


def reload_model(folder: Path, uri: str, prepared: Prepared) -> Any:
    """The model of a folder in Hugging Face layout, by its files alone; labels and head are the folder's own.

    `uri` is where it was downloaded from, for messages. Raises ExportUnusableError.
    """
    from safetensors import SafetensorError

    from .load import TORCH_DTYPES

    try:
        model, found = TASKS[prepared.task].model_class.from_pretrained(
            folder, dtype=TORCH_DTYPES[prepared.dtype], output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ExportUnusableError(f"{uri} cannot be loaded again: {error}", advice=_ADVICE) from error
    _refuse(uri, "lacks weights of its own architecture", found["missing_keys"])
    _refuse(uri, "has weights that its architecture does not use", found["unexpected_keys"])
    _refuse(uri, "has weights of other shapes than its config.json", [entry[0] for entry in found["mismatched_keys"]])
    _check_labels(model.config, uri, prepared)
    return model


def _check_labels(config: Any, uri: str, prepared: Prepared) -> None:
    if not TASKS[prepared.task].has_labels:
        return
    labels = tuple(config.id2label[index] for index in sorted(config.id2label))
    if labels != prepared.labels:
        raise ExportUnusableError(
            f"{uri} names the labels {', '.join(labels[:4])}, but was trained on {', '.join(prepared.labels[:4])}",
            advice=_ADVICE,
        )


def reload_adapter(base: Any, folder: Path, uri: str, prepared: Prepared) -> Any:
    """The base model with the adapter of a folder. Raises ExportUnusableError."""
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    from .export import adapter_weights

    try:
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            stored = set(file.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing weights, which is an error below
            model = PeftModel.from_pretrained(base, str(folder))
        if TASKS[prepared.task].has_labels:
            _check_labels(AutoConfig.from_pretrained(folder), uri, prepared)
    except KeyError as error:  # how PEFT reports that the head is missing
        raise ExportUnusableError(f"{uri} lacks weights of its adapter, among them {error}", advice=_ADVICE) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ExportUnusableError(f"{uri} cannot be loaded again: {error}", advice=_ADVICE) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ExportUnusableError(f"{uri} does not fit its base model: {error}", advice=_ADVICE) from error
    wanted = set(adapter_weights(model))
    _refuse(uri, "lacks weights of its adapter", wanted - stored)
    _refuse(uri, "has weights that its adapter does not use", stored - wanted)
    return model


def _refuse(uri: str, what: str, names: Any) -> None:
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ExportUnusableError(f"{uri} {what}: {len(names)}, first {first}", advice=_ADVICE)
