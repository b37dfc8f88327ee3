"""The order in which an epoch visits the rows, and what grouping by length saves. Pure.

The order is a function of its arguments alone, bit for bit: random bits come from Philox, whose stream numpy
guarantees, and lengths are compared as integers, so that every machine and every restart agrees.
"""

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int32]
Order = NDArray[np.int64]

_SIGNIFICANT_BITS = 8
"""Lengths that agree in their leading 8 bits (within 0.8 %) count as equal and mix freely from epoch to epoch."""
_RANDOM_BITS = 43
"""What is left of 64 bits beside the largest rounded length, 2**20 (`spec.data.maxLength`)."""


def epoch_order(lengths: Lengths, *, seed: int, epoch: int, batch_size: int, grouped: bool) -> Order:
    """A permutation of the row numbers, another one for every epoch; O(n log n).

    `grouped`: every consecutive `batch_size` rows (a global batch) have similar lengths, longest first within the
    batch, so that the micro batches of the ranks are alike too. Batches come in random order, except that the longest
    rows come first: what does not fit into memory fails at once.
    """
    bits = np.random.Philox(key=[seed, epoch])
    rows = len(lengths)
    randoms = np.asarray(bits.random_raw(rows), dtype=np.uint64)
    if not grouped:
        return np.argsort(randoms, kind="stable").astype(np.int64)
    keys = (_rounded(lengths) << np.uint64(_RANDOM_BITS)) | (randoms >> np.uint64(64 - _RANDOM_BITS))
    descending = np.argsort(keys, kind="stable")[::-1].astype(np.int64)
    return _sorted_within(_shuffled_batches(descending, batch_size, bits), lengths, batch_size)


def _rounded(lengths: Lengths) -> NDArray[np.uint64]:
    """Lengths with all but their leading bits cleared; `frexp` gives the bit length exactly."""
    _, bit_length = np.frexp(lengths.astype(np.float64))
    cleared = np.maximum(bit_length - _SIGNIFICANT_BITS, 0)
    return np.asarray((lengths.astype(np.int64) >> cleared) << cleared, dtype=np.uint64)


def _shuffled_batches(rows: Order, batch_size: int, bits: np.random.Philox) -> Order:
    """Whole batches in random order behind the first; the incomplete one, cut at a random place, at the end."""
    batches, rest = divmod(len(rows), batch_size)
    if batches == 0:
        return rows
    cut = (1 + int(bits.random_raw()) % batches) * batch_size
    incomplete = rows[cut : cut + rest]
    whole = np.concatenate([rows[:cut], rows[cut + rest :]]).reshape(batches, batch_size)
    later = 1 + np.argsort(np.asarray(bits.random_raw(batches - 1), dtype=np.uint64), kind="stable")
    return np.concatenate([whole[0], whole[later].reshape(-1), incomplete])


def _sorted_within(rows: Order, lengths: Lengths, batch_size: int) -> Order:
    """Longest first within each batch."""
    batch = np.arange(len(rows), dtype=np.int64) // batch_size
    return rows[np.lexsort((-lengths[rows].astype(np.int64), batch))]


def padded_tokens(lengths: Lengths, batch_size: int) -> int:
    """Tokens that the batches hold with padding when rows are taken in the given order."""
    if len(lengths) == 0:
        return 0
    starts = np.arange(0, len(lengths), batch_size)
    sizes = np.diff(np.append(starts, len(lengths)))
    return int((np.maximum.reduceat(lengths.astype(np.int64), starts) * sizes).sum())


def padding_saved(lengths: Lengths, batch_size: int) -> float:
    """Share of the tokens computed with random batches that batches of similar length do not compute, 0 to 1.

    Random batches are counted by expectation: the longest of B rows drawn from lengths with the distribution function
    F is at most l with probability F(l)**B.
    """
    if len(lengths) == 0 or batch_size <= 1:
        return 0.0
    values, counts = np.unique(lengths, return_counts=True)
    at_most = (np.cumsum(counts) / len(lengths)) ** batch_size
    longest = float((values * np.diff(at_most, prepend=0.0)).sum())
    expected = longest * len(lengths)
    grouped = padded_tokens(np.sort(lengths)[::-1].astype(np.int32), batch_size)
    return max(0.0, 1.0 - grouped / expected)
