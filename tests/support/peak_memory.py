"""Measures the memory of tensors."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that were created within the context, at most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        existing = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if torch.is_tensor(value) and (storage := value.untyped_storage())._cdata not in existing | {*self.known}:
                self.now += storage.nbytes()
                self.known[storage._cdata] = weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size
