"""A rate-limited request body."""

import io
from collections.abc import Callable

_PIECE = 256 << 10


class PacedBody(io.RawIOBase):
    """A readable file of bytes in memory. Calls `pace` before each chunk, which may block. Never copies all bytes."""

    def __init__(self, data: bytes | memoryview, pace: Callable[[int], None]) -> None:
        self._view, self._pace, self._at = memoryview(data), pace, 0

    def __len__(self) -> int:
        return len(self._view)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: a failed request is sent again from the start."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position, as `io.IOBase.seek` does."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes from the current position, after `pace` has returned for them."""
        end = len(self._view) if size is None or size < 0 else min(self._at + size, len(self._view))
        start, self._at = self._at, end
        for at in range(start, end, _PIECE):
            self._pace(min(_PIECE, end - at))
        return bytes(self._view[start:end])
