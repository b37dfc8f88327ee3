import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.trainer_config import BatchPlan
from finetune_trainer.data.order import (
    Grouping,
    cheapest_grouping,
    epoch_order,
    padded_tokens,
    pass_tokens,
    strata_of,
)

ROWS = st.lists(st.integers(1, 5000), max_size=300).map(lambda lengths: np.array(lengths, dtype=np.int32))
SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 10_000)
BATCHES = st.integers(1, 40)


def lognormal_lengths(rows: int = 5000) -> np.ndarray:
    draws = np.random.RandomState(7).lognormal(mean=5.0, sigma=1.0, size=rows)
    return np.clip(draws, 4, 4096).astype(np.int32)


def megabatch_order(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """Grouping like transformers' group_by_length: shuffled, divided into groups of 50 batches, each sorted."""
    rows = np.random.RandomState(3).permutation(len(lengths))
    cuts = [rows[start : start + 50 * batch_size] for start in range(0, len(rows), 50 * batch_size)]
    return np.concatenate([cut[np.argsort(-lengths[cut], kind="stable")] for cut in cuts])


def waste(lengths: np.ndarray, order: np.ndarray, batch_size: int) -> float:
    return padded_tokens(lengths[order], batch_size) / int(lengths.sum())


@given(lengths=ROWS, seed=SEEDS, epoch=EPOCHS, batch_size=BATCHES, grouped=st.booleans())
@settings(max_examples=100)
def test_every_epoch_visits_every_row_once(lengths, seed, epoch, batch_size, grouped):
    order = epoch_order(lengths, seed=seed, epoch=epoch, batch_size=batch_size, grouped=grouped)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(lengths)))


@given(lengths=ROWS, seed=SEEDS, epoch=EPOCHS, batch_size=BATCHES, grouped=st.booleans())
@settings(max_examples=50)
def test_equal_arguments_give_the_same_order(lengths, seed, epoch, batch_size, grouped):
    first, second = (
        epoch_order(lengths.copy(), seed=seed, epoch=epoch, batch_size=batch_size, grouped=grouped) for _ in range(2)
    )
    assert first.tolist() == second.tolist()


@given(seed=SEEDS, epoch=EPOCHS, grouped=st.booleans())
@settings(max_examples=50)
def test_epochs_and_seeds_differ(seed, epoch, grouped):
    lengths = lognormal_lengths(300)
    here = epoch_order(lengths, seed=seed, epoch=epoch, batch_size=8, grouped=grouped)
    assert here.tolist() != epoch_order(lengths, seed=seed, epoch=epoch + 1, batch_size=8, grouped=grouped).tolist()
    assert here.tolist() != epoch_order(lengths, seed=seed + 1, epoch=epoch, batch_size=8, grouped=grouped).tolist()


@given(lengths=ROWS.filter(len), seed=SEEDS, epoch=EPOCHS, batch_size=BATCHES)
@settings(max_examples=100)
def test_grouped_batches_are_sorted_within_and_the_longest_come_first(lengths, seed, epoch, batch_size):
    order = epoch_order(lengths, seed=seed, epoch=epoch, batch_size=batch_size, grouped=True)
    for start in range(0, len(order), batch_size):
        batch = lengths[order[start : start + batch_size]]
        assert (np.diff(batch) <= 0).all()
    whole = range(0, len(order) - batch_size + 1, batch_size)
    heaviest = max((padded(lengths, order[start : start + batch_size]) for start in whole), default=0)
    assert padded(lengths, order[:batch_size]) >= heaviest * (1 - 1 / 64)


def padded(lengths: np.ndarray, batch: np.ndarray) -> int:
    """Tokens of a batch whose groups are padded separately."""
    edges = [len(batch) * part // strata_of(len(batch)) for part in range(strata_of(len(batch)) + 1)]
    return sum(int(lengths[batch[low:high]].max()) * (high - low) for low, high in pairwise(edges))


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_a_grouped_batch_mixes_lengths_like_a_random_one(batch_size):
    """Batches of one length had few classes, and the test loss was 4 % higher."""
    lengths = np.log(lognormal_lengths())
    spread = {}
    for grouped in (False, True):
        order = epoch_order(np.exp(lengths).astype(np.int32), seed=5, epoch=0, batch_size=batch_size, grouped=grouped)
        whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        spread[grouped] = float(lengths[whole].mean(axis=1).std())
    assert spread[True] < spread[False]


def test_the_order_does_not_change_between_versions():
    """A resumed run relies on it: changing these numbers breaks every run in progress."""
    lengths = np.arange(10, 22, dtype=np.int32)
    plain = epoch_order(lengths, seed=42, epoch=1, batch_size=4, grouped=False)
    grouped = epoch_order(lengths, seed=42, epoch=1, batch_size=4, grouped=True)
    assert plain.tolist() == [4, 10, 9, 5, 3, 0, 11, 2, 7, 1, 6, 8]
    assert grouped.tolist() == [11, 10, 5, 4, 9, 8, 3, 2, 7, 6, 1, 0]


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_grouping_needs_almost_no_padding_for_skewed_lengths(batch_size):
    lengths = lognormal_lengths()
    order = epoch_order(lengths, seed=42, epoch=3, batch_size=batch_size, grouped=True)
    ours = waste(lengths, order, batch_size // strata_of(batch_size))
    fully_sorted = waste(lengths, np.argsort(lengths)[::-1], batch_size)
    megabatches = waste(lengths, megabatch_order(lengths, batch_size), batch_size)
    if batch_size == 16:
        assert ours <= 1.05
    assert ours <= fully_sorted * 1.01
    assert ours <= megabatches


def test_more_micro_batches_than_strata_are_also_similar():
    lengths = lognormal_lengths()
    order = epoch_order(lengths, seed=42, epoch=0, batch_size=64, grouped=True)
    assert waste(lengths, order, 4) < 1.02


def test_grouped_epochs_compose_their_batches_differently():
    lengths = lognormal_lengths()
    epochs = [epoch_order(lengths, seed=42, epoch=epoch, batch_size=16, grouped=True) for epoch in (0, 1)]
    first, second = ({frozenset(order[i : i + 16].tolist()) for i in range(0, 5000, 16)} for order in epochs)
    assert len(first & second) < 0.1 * len(first)


def test_an_epoch_of_a_million_rows_is_ordered_quickly():
    lengths = lognormal_lengths(1_000_000)
    started = time.process_time()
    epoch_order(lengths, seed=1, epoch=0, batch_size=64, grouped=True)
    assert time.process_time() - started < 3.0


def plan(micro: int, accumulation: int = 1, ranks: int = 1) -> BatchPlan:
    return BatchPlan(global_size=micro * accumulation * ranks, micro_size=micro, accumulation=accumulation)


def grouping(lengths: np.ndarray, batch: BatchPlan, fixed: float) -> Grouping:
    return cheapest_grouping(lengths.astype(np.int32), batch, seed=1, fixed=fixed)


@pytest.mark.parametrize(
    ("batch", "fixed", "groups"),
    [
        pytest.param(plan(16), 0, 4, id="free passes: a group of every stratum"),
        pytest.param(plan(64), 0, 8, id="as many as in a larger batch"),
        pytest.param(plan(16), 80, 4, id="long texts are worth more passes on a CPU"),
        pytest.param(plan(16), 100_000, 1, id="costly passes: one"),
        pytest.param(plan(8, ranks=2), 0, 4, id="ranks share the groups"),
        pytest.param(plan(8, accumulation=2), 200, 2, id="micro steps share the groups"),
        pytest.param(plan(4, accumulation=4), 400, 1, id="micro steps are groups"),
        pytest.param(plan(6), 0, 3, id="groups of equal size"),
        pytest.param(plan(5), 800, 1, id="five rows are one group or five"),
    ],
)
def test_a_micro_batch_has_the_cheapest_number_of_padding_groups(batch: BatchPlan, fixed: float, groups: int) -> None:
    assert grouping(lognormal_lengths(), batch, fixed).groups == groups


def test_short_texts_are_not_computed_in_passes_that_cost_more_than_their_padding() -> None:
    tweets = np.random.default_rng(1).integers(5, 30, 3000)
    assert grouping(tweets, plan(4, ranks=2), pass_tokens(22_000_000, gpu=False)).groups == 1
    assert grouping(tweets * 30, plan(4, ranks=2), pass_tokens(22_000_000, gpu=False)).groups > 1


def test_a_pass_of_a_small_model_is_worth_more_tokens_on_a_gpu() -> None:
    assert pass_tokens(110_000_000, gpu=True) > 50 * pass_tokens(7_000_000_000, gpu=True)


def test_saved_is_the_share_of_the_cost_of_random_batches() -> None:
    lengths = lognormal_lengths()
    random, grouped = (
        padded_tokens(lengths[epoch_order(lengths, seed=1, epoch=0, batch_size=16, grouped=grouped)], size)
        for grouped, size in ((False, 16), (True, 4))
    )
    passes = -(-len(lengths) // 16)
    assert grouping(lengths, plan(16), 0).saved == pytest.approx(1 - grouped / random)
    expected = 1 - (grouped + 4 * 80 * passes) / (random + 80 * passes)
    assert grouping(lengths, plan(16), 80).saved == pytest.approx(expected)
    assert expected > 0.4


@pytest.mark.parametrize(("lengths", "micro"), [([], 8), ([7] * 50, 8), ([3, 90, 4, 800], 1)])
def test_nothing_is_saved_without_padding(lengths: list[int], micro: int) -> None:
    assert grouping(np.array(lengths), plan(micro), 80) == Grouping(groups=1, saved=pytest.approx(0.0))
