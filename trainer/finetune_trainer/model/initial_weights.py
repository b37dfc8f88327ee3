"""Values that training begins with because they were computed from the base model: in storage, and on a loaded model.

They are computed once per run, because a singular value decomposition gives other vectors on another machine. Every
attempt and every rank reads the stored ones, and changes the base model by the same values.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import Message

from ..errors import ModelUnusableError, ObjectMissingError
from ..methods.base import FineTuningMethod, Weights
from ..store.client import ObjectStore
from .load import writable


class InitialWeightsRecord(Message):
    """`initial-weights.json` in the run's folder."""

    weights: str
    """SHA-256 of the stored values."""


def record_initial_weights(
    weights: Weights, dtype: torch.dtype, store: ObjectStore, layout: RunLayout, create: Callable[[str, bytes], bytes]
) -> InitialWeightsRecord:
    """Store the values, as the type of the training can represent them. Returns the record that is in storage.

    `create` creates an object of the run unless there is one, and returns its content. If another attempt has stored
    its values in the meantime, those apply. Raises FencedError if a newer attempt has claimed the run.
    """
    content = save({name: value.to(dtype).float() for name, value in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    store.put(layout.initial_weights_file(digest), content)
    text = InitialWeightsRecord(weights=digest).model_dump_json(indent=1).encode()
    return InitialWeightsRecord.model_validate_json(create(layout.initial_weights, text))


def stored_record(store: ObjectStore, layout: RunLayout) -> InitialWeightsRecord | None:
    """Read what an earlier attempt of the run has computed; None if there is none."""
    try:
        return InitialWeightsRecord.model_validate(store.get_json(layout.initial_weights))
    except ObjectMissingError:
        return None


def stored_initial_weights(record: InitialWeightsRecord, store: ObjectStore, layout: RunLayout) -> Weights:
    """Read the values, and check them against their digest. Raises ModelUnusableError if they are damaged."""
    uri = layout.initial_weights_file(record.weights)
    content = store.get(uri)
    if hashlib.sha256(content).hexdigest() != record.weights:
        raise ModelUnusableError(
            f"{uri} has not the initial weights of this run: its SHA-256 is not the one in initial-weights.json",
            advice="change spec.runNonce to start a new run",
        )
    return dict(sorted(load(content).items()))


def begin_with(model: nn.Module, method: FineTuningMethod[Any], block: Any, initial: Weights) -> None:
    """Let a model, the result of the method's `apply`, begin with the values, as a whole equal to the base model.

    The values are kept as `initial_weights` of the model for the export. Works at any ZeRO stage; collective under
    ZeRO-3.
    """
    parameters = dict(model.named_parameters())
    for name, value in initial.items():
        with writable(parameters[name]) as (data, is_writer):
            if is_writer:
                data.copy_(value)
    for name, difference in method.base_differences(model, block, initial):
        with writable(parameters[name]) as (data, is_writer):
            if is_writer:
                data.copy_(data.float() - difference.to(data.device))
    vars(model)["initial_weights"] = initial
