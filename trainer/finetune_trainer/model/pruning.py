"""Masks of `spec.method.full.pruning`: in storage, on a loaded model, and during a training.

They are chosen once per run, because those of Wanda depend on activations, whose last bits depend on the machine. Every
attempt and every rank reads the stored ones.
"""

import hashlib
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import nn
from transformers import PreTrainedModel

from finetune_api.run_layout import RunLayout

from ..errors import ModelUnusableError, ObjectMissingError, TrainerError
from ..methods.pruning import Masks
from ..methods.pruning.matrices import layer_matrices
from ..methods.pruning.record import PrunedKind, PruningRecord
from ..store.client import ObjectStore
from .load import writable


def record_masks(
    model: PreTrainedModel,
    masks: Masks,
    store: ObjectStore,
    layout: RunLayout,
    create: Callable[[str, bytes], bytes],
) -> PruningRecord:
    """Store the masks that were chosen for a complete model. Returns the record that is in storage.

    `create` creates an object of the run unless there is one, and returns its content. If another attempt has stored
    its choice in the meantime, that one applies. Raises FencedError if a newer attempt has claimed the run.
    """
    content = save({name: np.packbits(mask.numpy()) for name, mask in masks.items()})
    digest = hashlib.sha256(content).hexdigest()
    store.put(layout.pruning_masks(digest), content)
    record = PruningRecord(masks=digest, kinds=_kinds(model, masks))
    text = record.model_dump_json(indent=1).encode()
    return PruningRecord.model_validate_json(create(layout.pruning, text))


def stored_pruning(store: ObjectStore, layout: RunLayout) -> PruningRecord | None:
    """Read what an earlier attempt of the run has chosen; None if there is none."""
    try:
        return PruningRecord.model_validate(store.get_json(layout.pruning))
    except ObjectMissingError:
        return None


def stored_masks(record: PruningRecord, store: ObjectStore, layout: RunLayout, model: nn.Module) -> Masks:
    """Read the masks and check them against their digest and the parameters of a model, at any ZeRO stage.

    Raises ModelUnusableError if they are damaged.
    """
    uri = layout.pruning_masks(record.masks)
    content = store.get(uri)
    if hashlib.sha256(content).hexdigest() != record.masks:
        raise _damaged(uri, "its SHA-256 is not the one in pruning.json")
    packed = load(content)
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in model.named_parameters()}
    if unknown := sorted(packed.keys() - shapes.keys()):
        raise _damaged(uri, f"the base model has no parameter {unknown[0]}")
    masks: Masks = {}
    for name, bits in sorted(packed.items()):  # safetensors returns another order on each rank
        values = np.unpackbits(bits)
        count = prod(shapes[name])
        if not count <= values.size < count + 8:
            raise _damaged(uri, f"the mask of {name} has another size than the parameter")
        masks[name] = torch.from_numpy(values[:count].astype(bool)).view(shapes[name])
    return masks


def set_zeros(model: nn.Module, masks: Masks) -> None:
    """Set the masked values of a model to zero, at any ZeRO stage. Collective under ZeRO-3."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        with writable(parameters[name]) as (values, is_writer):
            if is_writer:
                values.masked_fill_(mask.to(values.device), 0.0)


def keep_zeros(model: nn.Module, masks: Masks) -> None:
    """Set the gradients of masked values to zero in every backward pass from now on.

    The hook of a parameter runs before DeepSpeed reduces the gradient. With gradients of zero, the moments of the
    optimizer stay zero, and weight decay of zero is zero. Frozen parameters get a hook too, in case they are trained
    later.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        is_trained = parameters[name].requires_grad
        parameters[name].requires_grad_(True).register_hook(_ZeroGradient(mask))  # type: ignore[no-untyped-call]
        parameters[name].requires_grad_(is_trained)


def check_zeros(model: nn.Module, masks: Masks) -> None:
    """Raise TrainerError, on every rank, if a masked value of a model is not zero. Collective under ZeRO-3."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        with writable(parameters[name]) as (values, _):
            changed = int(values[mask.to(values.device)].count_nonzero())
        if changed:
            raise TrainerError(
                f"{changed:,} values of {name} that spec.method.full.pruning has set to zero are not zero after the "
                "training",
                advice="report the error with the base model's name",
            )


class _ZeroGradient:
    """Hook of a parameter. The mask is moved to the device of the gradient once."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        self._mask = self._mask.to(gradient.device)
        # Not a product: infinite gradients of Float16 times zero are NaN.
        return gradient.masked_fill(self._mask, 0.0)


def _kinds(model: PreTrainedModel, masks: Masks) -> tuple[PrunedKind, ...]:
    totals: dict[str, list[int]] = {}
    for name, matrix in layer_matrices(model).items():
        counts = totals.setdefault(matrix.kind, [0, 0])
        counts[0] += masks[name].numel()
        counts[1] += int(masks[name].sum())
    return tuple(PrunedKind(name=name, weights=weights, zeros=zeros) for name, (weights, zeros) in totals.items())


def _damaged(uri: str, reason: str) -> ModelUnusableError:
    return ModelUnusableError(
        f"{uri} has not the masks of this run: {reason}", advice="change spec.runNonce to start a new run"
    )
