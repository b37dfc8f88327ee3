"""Host memory shared by a rank, which writes snapshots into it, and its uploader, which reads them."""

import mmap
import os

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]


class SharedMemory:
    """An anonymous file in memory (Linux). It never shrinks: touching fresh pages costs more than a copy.

    Not limited by the size of /dev/shm; accounted to the process that wrote it.
    """

    def __init__(self, descriptor: int | None = None, *, name: str = "finetune") -> None:
        self.descriptor = os.memfd_create(name) if descriptor is None else descriptor
        self._array: ByteArray = np.empty(0, dtype=np.uint8)

    def array(self, size: int) -> ByteArray:
        """The first `size` bytes, readable and writable. Earlier views stay valid when the memory grows."""
        if self._array.nbytes < size:
            if os.fstat(self.descriptor).st_size < size:
                os.truncate(self.descriptor, size)
            self._array = np.frombuffer(mmap.mmap(self.descriptor, size), dtype=np.uint8)
        return self._array[:size]

    def close(self) -> None:
        """Free the memory when the last view is released."""
        self._array = np.empty(0, dtype=np.uint8)
        os.close(self.descriptor)
