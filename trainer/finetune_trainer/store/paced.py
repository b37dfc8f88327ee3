"""The body of a request that is sent no faster than somebody says."""

import io
from collections.abc import Callable

_PIECE = 256 << 10


class PacedBody(io.RawIOBase):
    """Bytes as a file for reading; `pace` is called before each piece and may wait. No copy of the whole is made."""

    def __init__(self, data: bytes | memoryview, pace: Callable[[int], None]) -> None:
        self._view, self._pace, self._at = memoryview(data), pace, 0

    def __len__(self) -> int:
        return len(self._view)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: a request that fails is sent again from its beginning."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """As files do."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes from here on, once they may be sent."""
        end = len(self._view) if size is None or size < 0 else min(self._at + size, len(self._view))
        start, self._at = self._at, end
        for at in range(start, end, _PIECE):
            self._pace(min(_PIECE, end - at))
        return bytes(self._view[start:end])
