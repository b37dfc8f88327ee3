"""Page-locked host memory: a GPU copies to it at the full speed of the bus, without a staging buffer of the driver."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

log = logging.getLogger(__name__)

_cuda: Any = torch.cuda  # these functions have no type hints
_DEFAULT_FLAGS = 0


class PinnedMemory:
    """Page-locks one array at a time for the GPU of this process. Does nothing without a GPU."""

    def __init__(self) -> None:
        self._array: npt.NDArray[np.uint8] | None = None
        self._is_refused = False

    def hold(self, array: npt.NDArray[np.uint8]) -> None:
        """Lock this array instead of the previous one. If memory cannot be locked, copies are only slower."""
        if self._is_refused or not _cuda.is_initialized() or self._is_held(array):
            return
        self.release()
        code = int(_cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, _DEFAULT_FLAGS))
        if code:
            self._is_refused = True
            log.warning("%.1f MB for snapshots cannot be page-locked (CUDA error %d)", array.nbytes / 1e6, code)
            return
        self._array = array

    def release(self) -> None:
        """Unlock the array. Must be called before its memory is freed."""
        if self._array is not None:
            _cuda.cudart().cudaHostUnregister(self._array.ctypes.data)
        self._array = None

    def _is_held(self, array: npt.NDArray[np.uint8]) -> bool:
        held = self._array
        return held is not None and held.ctypes.data == array.ctypes.data and held.nbytes >= array.nbytes
