"""Hashes of runs of numbers, computed for all places of an array at a time."""

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64: every bit of a value affects every bit of the result."""
    values = values + _BASE
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    return values ^ (values >> np.uint64(31))


def window_hashes(values: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The hash of every run of `size` values; one fewer for each value that a run has more than one. Values are mixed
    first, so runs with other values have other hashes, up to the probability of equal 64-bit hashes."""
    count = len(values) - size + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    scattered = mixed(values)
    found = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        found = found * _BASE + scattered[offset : offset + count]
    return mixed(found)


def are_in(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the values are in `known`, which is sorted. Unlike `np.isin`, it does not sort `known` again."""
    if not len(known):
        return np.zeros(len(values), dtype=np.bool_)
    found: NDArray[np.bool_] = known[np.minimum(known.searchsorted(values), len(known) - 1)] == values
    return found
