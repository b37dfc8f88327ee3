"""Which test examples share a forward pass. Pure."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def batches_by_length(
    lengths: npt.NDArray[np.int32], *, max_tokens: int, max_rows: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of batches of similar length, longest first, so that a lack of memory shows at once.

    A batch has at most `max_rows` rows and, padded to its longest, at most `max_tokens` tokens; one example that is
    longer than that is a batch of its own.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < order.size:
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(max_rows, max_tokens // longest))
        yield order[start : start + rows].astype(np.int64)
        start += rows
