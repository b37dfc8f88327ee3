"""Which rows share a pack: one row of the model's input that holds several examples. Pure.

Packs are filled in two ways, and the one with fewer packs is used. Best-fit decreasing takes the longest example first,
and puts each into the pack whose free space it fills best. The other way fills one pack after another: the longest
example that is left, and others that together fill its free space best (as minimum bin slack does, Gupta and Ho 1999).
The latter is better without very short examples, which best-fit decreasing needs to fill gaps.

The result depends only on how many examples there are of each length, so the number of packs is known from the
histogram of a dataset and is the same in every epoch. An epoch draws which of the examples of a length takes which
place, so other examples share a pack in every epoch, and it draws the order of the packs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .order import Lengths, Order, random_bits, random_order

_TRIED_LENGTHS = 256
"""Lengths that are tried to fill a pack. With more, planning many different lengths would take minutes."""


@dataclass(frozen=True)
class PackPlan:
    """The packs of a dataset by the lengths of their examples, for P packs of N examples."""

    count: int
    """P."""
    packs: NDArray[np.int64]
    """Pack of each place, shape (N,). Place i is for an example of the i-th smallest length."""


@dataclass(frozen=True)
class EpochPacks:
    """The packs of one epoch, in the order in which they are trained."""

    rows: Order
    """Row numbers of the first pack, then those of the second one, and so on; shape (N,)."""
    ends: NDArray[np.int64]
    """End of each pack in `rows`, shape (P,)."""

    def members(self, pack: int) -> tuple[int, ...]:
        """Return the row numbers of a pack, the shortest row first."""
        start = int(self.ends[pack - 1]) if pack else 0
        return tuple(self.rows[start : self.ends[pack]].tolist())


@dataclass(frozen=True)
class _EqualPacks:
    """Packs that hold examples of the same lengths."""

    count: int
    content: tuple[tuple[int, int], ...] = ()
    """Length of examples, and how many of them each pack has."""

    def filled(self, count: int, length: int, examples: int) -> "_EqualPacks":
        """Return `count` of these packs with more examples."""
        return _EqualPacks(count, (*self.content, (length, examples)))


def plan_packs(histogram: Mapping[int, int], capacity: int) -> PackPlan:
    """Pack a dataset with `histogram[length]` examples of each length, at most `capacity` tokens per pack.

    Packs with the same content are handled together, so the time grows with the number of different lengths rather than
    of examples, whose places are only sorted at the end.
    """
    assert max(histogram, default=0) <= capacity, "no row is longer than maxLength"
    plans = [_best_fit(histogram, capacity), _one_after_another(histogram, capacity)]
    return _places(min(plans, key=lambda groups: sum(packs.count for packs in groups)))


def _best_fit(histogram: Mapping[int, int], capacity: int) -> list[_EqualPacks]:
    """Fill packs by best-fit decreasing."""
    groups: dict[int, list[_EqualPacks]] = {}
    spaces: list[int] = []  # the keys of `groups`, sorted

    def add(space: int, packs: _EqualPacks) -> None:
        if not packs.count:
            return
        if space not in groups:
            groups[space] = []
            insort(spaces, space)
        groups[space].append(packs)

    def tightest(length: int, left: int) -> tuple[int, _EqualPacks]:
        """Remove and return the packs with the smallest space for the length; new packs if there are none."""
        index = bisect_left(spaces, length)
        if index == len(spaces):
            return capacity, _EqualPacks(-(-left // (capacity // length)))
        space = spaces[index]
        packs = groups[space].pop()
        if not groups[space]:
            del groups[space], spaces[index]
        return space, packs

    for length in sorted(histogram, reverse=True):
        left = histogram[length]
        while left:
            space, packs = tightest(length, left)
            each = space // length
            full = min(packs.count, left // each)
            add(space - each * length, packs.filled(full, length, each))
            left -= full * each
            if full < packs.count and left:  # fewer than `each` are left
                add(space - left * length, packs.filled(1, length, left))
                full, left = full + 1, 0
            add(space, _EqualPacks(packs.count - full, packs.content))
    return [packs for space in spaces for packs in groups[space]]


def _one_after_another(histogram: Mapping[int, int], capacity: int) -> list[_EqualPacks]:
    """Fill each pack as well as possible with the examples that are left."""
    left, lengths = Counter(histogram), sorted(histogram)
    groups = []
    while lengths:
        longest = lengths[-1]
        left[longest] -= 1
        content = _filling(lengths, left, capacity - longest)
        left[longest] += 1
        content[longest] += 1
        count = min(left[length] // examples for length, examples in content.items())
        groups.append(_EqualPacks(count, tuple(content.items())))
        for length, examples in content.items():
            left[length] -= count * examples
            if not left[length]:
                lengths.remove(length)
    return groups


def _filling(lengths: list[int], left: Mapping[int, int], space: int) -> Counter[int]:
    """Return how many examples of each of the ascending `lengths` fill a space best, long ones preferred.

    Bit t of a number in `reached` says whether some of the lengths so far have a sum of t tokens.
    """
    fitting = lengths[: bisect_right(lengths, space)]
    tried = fitting[:: -(-len(fitting) // _TRIED_LENGTHS)][::-1] if fitting else []
    sums = (1 << space + 1) - 1
    reached = [1]
    for length in tried:
        bits = reached[-1]
        for _ in range(min(left[length], space // length)):
            bits |= bits << length & sums
        reached.append(bits)
        if bits >> space:
            break
    total, content = reached[-1].bit_length() - 1, Counter[int]()
    for length, before in zip(reversed(tried[: len(reached) - 1]), reversed(reached[:-1]), strict=True):
        while not before >> total & 1:
            total -= length
            content[length] += 1
    return content


def _places(groups: list[_EqualPacks]) -> PackPlan:
    """Number the packs, and sort their places by length."""
    lengths: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    packs: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    count = 0
    for group in groups:
        numbers = np.arange(count, count + group.count, dtype=np.int64)
        count += group.count
        for length, examples in group.content:
            packs.append(np.repeat(numbers, examples))
            lengths.append(np.full(group.count * examples, length, dtype=np.int64))
    order = np.argsort(np.concatenate(lengths), kind="stable")
    return PackPlan(count, np.concatenate(packs)[order])


def epoch_packs(plan: PackPlan, lengths: Lengths, *, seed: int, epoch: int) -> EpochPacks:
    """Draw the examples of each pack and the order of the packs; different for every epoch, O(n log n).

    `lengths` are those of the rows, shape (N,), with the histogram of the plan.
    """
    bits = random_bits(seed, epoch)
    shuffled = random_order(bits, len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    places = random_order(bits, plan.count)[plan.packs]
    return EpochPacks(
        rows=by_length[np.argsort(places, kind="stable")],
        ends=np.cumsum(np.bincount(places, minlength=plan.count)),
    )


def efficiency(histogram: Mapping[int, int], plan: PackPlan, capacity: int) -> float:
    """Return the share of the places for tokens that hold a token."""
    return sum(length * count for length, count in histogram.items()) / max(1, plan.count * capacity)


def histogram_of(lengths: Lengths) -> dict[int, int]:
    """Return the number of rows of each length."""
    found, counts = np.unique(lengths, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
