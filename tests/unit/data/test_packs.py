"""Packs: every example once per epoch, never above the capacity, nearly full, and the same on every machine."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune_trainer.data.packs import EpochPacks, efficiency, epoch_packs, histogram_of, plan_packs

CAPACITY = 256


def short_texts(count: int, *, median: float = 31.0, seed: int = 1) -> NDArray[np.int32]:
    """Log-normal lengths, as of sentences and short news."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 0.9, count)
    return np.clip(drawn, 2, CAPACITY).astype(np.int32)


def packs_of(lengths: NDArray[np.int32], *, capacity: int = CAPACITY, seed: int = 1, epoch: int = 0) -> EpochPacks:
    return epoch_packs(plan_packs(histogram_of(lengths), capacity), lengths, seed=seed, epoch=epoch)


def members(packs: EpochPacks) -> list[tuple[int, ...]]:
    return [packs.members(pack) for pack in range(len(packs.ends))]


@given(st.lists(st.integers(1, 32), min_size=1, max_size=200), st.integers(0, 3))
def test_every_example_is_in_one_pack_and_no_pack_exceeds_the_capacity(sizes: list[int], epoch: int) -> None:
    lengths = np.array(sizes, dtype=np.int32)
    found = members(packs_of(lengths, capacity=32, epoch=epoch))
    assert sorted(row for pack in found for row in pack) == list(range(len(sizes)))
    assert all(pack and lengths[list(pack)].sum() <= 32 for pack in found)


def packs_one_example_at_a_time(lengths: NDArray[np.int32], capacity: int) -> int:
    """Best-fit decreasing, one example at a time."""
    spaces: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [index for index, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda index: spaces[index])] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)


@given(st.lists(st.integers(1, 24), max_size=120), st.integers(24, 40))
def test_there_are_never_more_packs_than_with_best_fit_decreasing(sizes: list[int], capacity: int) -> None:
    lengths = np.array(sizes, dtype=np.int32)
    assert plan_packs(histogram_of(lengths), capacity).count <= packs_one_example_at_a_time(lengths, capacity)


def test_similar_lengths_that_one_of_the_ways_packs_badly() -> None:
    """Best-fit decreasing is better for lengths around 100; one pack after another, if no text is very short."""
    draw = np.random.default_rng(0)
    around_100 = np.clip(draw.normal(100, 20, 2000), 8, CAPACITY).astype(np.int32)
    with_system_prompt = np.clip(40 + draw.lognormal(np.log(14), 0.7, 1620), 2, CAPACITY).astype(np.int32)
    for lengths, at_most in ((around_100, 1.08), (with_system_prompt, 1.03)):
        assert plan_packs(histogram_of(lengths), CAPACITY).count <= at_most * lengths.sum() / CAPACITY


@pytest.mark.parametrize(
    ("count", "median", "shift", "capacity"),
    [(1000, 31.0, 0, 256), (5000, 60.0, 0, 256), (100_000, 20.0, 0, 256), (1600, 14.0, 40, 512)],
)
def test_packs_of_short_texts_are_full(count: int, median: float, shift: int, capacity: int) -> None:
    """`shift`: tokens of a system prompt in every text."""
    histogram = histogram_of(short_texts(count, median=median) + np.int32(shift))
    assert efficiency(histogram, plan_packs(histogram, capacity), capacity) >= 0.99


def test_many_different_lengths_are_planned_quickly() -> None:
    lengths = np.random.default_rng(1).integers(1, 2**15, 5000).astype(np.int32)
    assert plan_packs(histogram_of(lengths), 2**15).count <= 1.02 * lengths.sum() / 2**15


def test_packs_depend_only_on_lengths_seed_and_epoch() -> None:
    lengths = short_texts(500)
    assert members(packs_of(lengths)) == members(packs_of(lengths))
    others = [packs_of(lengths, seed=2), packs_of(lengths, epoch=1)]
    assert all(members(other) != members(packs_of(lengths)) for other in others)


def test_every_epoch_has_as_many_packs_of_other_examples_in_another_order() -> None:
    lengths = short_texts(500)
    epochs = [members(packs_of(lengths, epoch=epoch)) for epoch in range(3)]
    assert len({len(packs) for packs in epochs}) == 1
    for one, other in pairwise(epochs):
        assert len({frozenset(pack) for pack in one} & {frozenset(pack) for pack in other}) < len(one) / 4
        tokens = [[int(lengths[list(pack)].sum()) for pack in packs] for packs in (one, other)]
        assert sorted(tokens[0]) == sorted(tokens[1])
        assert tokens[0] != tokens[1]


def test_packs_of_known_lengths() -> None:
    """Pinned: resumed runs must see the same packs."""
    lengths = np.array([5, 3, 8, 2, 4, 6, 1, 7], dtype=np.int32)
    assert members(packs_of(lengths, capacity=10)) == [(3, 2), (4, 5), (1, 7), (6, 0)]
