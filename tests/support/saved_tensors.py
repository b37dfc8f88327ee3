"""What a forward pass keeps for the backward pass."""

import weakref
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(model: Any, **inputs: torch.Tensor) -> int:
    """Bytes of the tensors that autograd saves, besides parameters and buffers; views of one tensor count once."""
    kept: weakref.WeakSet[Any] = weakref.WeakSet()

    class Saved:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value
            kept.add(self)

    with saved_tensors_hooks(Saved, lambda saved: saved.value):
        output = model(**inputs)
    assert output.logits.requires_grad
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    storages = {saved.value.untyped_storage().data_ptr(): saved.value.untyped_storage().nbytes() for saved in kept}
    return sum(size for key, size in storages.items() if key not in own)
