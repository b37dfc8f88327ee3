"""Host memory that a rank and its uploader both see: one writes a snapshot into it, the other one reads it there."""

import mmap
import os

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]


class SharedMemory:
    """An anonymous file in memory (Linux). It grows and never shrinks: fresh pages cost more than the copy into them.

    Not limited by the pod's /dev/shm; counted as memory of whoever wrote it.
    """

    def __init__(self, descriptor: int | None = None, *, name: str = "finetune") -> None:
        self.descriptor = os.memfd_create(name) if descriptor is None else descriptor
        self._array: ByteArray = np.empty(0, dtype=np.uint8)

    def array(self, size: int) -> ByteArray:
        """The first `size` bytes, to write and read. Contents stay when it grows; views of before go on to hold."""
        if self._array.nbytes < size:
            if os.fstat(self.descriptor).st_size < size:
                os.truncate(self.descriptor, size)
            self._array = np.frombuffer(mmap.mmap(self.descriptor, size), dtype=np.uint8)
        return self._array[:size]

    def close(self) -> None:
        """Give the memory back as soon as the last view of it is gone."""
        self._array = np.empty(0, dtype=np.uint8)
        os.close(self.descriptor)
