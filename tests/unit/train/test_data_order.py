"""Rows of each rank: together every row of an epoch once, for any number of ranks."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from finetune_api.trainer_config import BatchPlan
from finetune_trainer.data.order import cheapest_grouping, epoch_order
from finetune_trainer.train.rows import PADDING_ROW, GlobalBatches, PackedBatches, layout

GLOBAL = 8
WORLDS = [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (2, 1, 4), (4, 2, 1), (4, 1, 2)]
"""(ranks, micro-batch, accumulation), all of the same global batch."""
ALONE = BatchPlan(global_size=GLOBAL, micro_size=GLOBAL, accumulation=1)


def make_batches(rows: int, micro: int, accumulation: int, *, grouped: bool) -> GlobalBatches:
    lengths = np.random.default_rng(3).integers(3, 40, rows).astype(np.int32)
    plan = BatchPlan(global_size=GLOBAL, micro_size=micro, accumulation=accumulation)
    groups = cheapest_grouping(lengths, plan, seed=1, fixed=0).groups if grouped else 1
    return GlobalBatches(lengths, plan, seed=1, grouped=grouped, groups=groups)


def global_batches(rows: int, world: int, micro: int, *, grouped: bool, first: int = 0) -> list[list[int]]:
    """The rows of each optimizer step of epoch 2 over all ranks."""
    accumulation = GLOBAL // world // micro
    batches = make_batches(rows, micro, accumulation, grouped=grouped)
    ranks = [batches.micro_batches(2, rank=rank, first=first) for rank in range(world)]
    assert {len(batch) for batch in chain(*ranks)} == {micro}
    assert len({len(mine) for mine in ranks}) == 1, "a rank without a micro-batch would block the others forever"
    rounds = [list(chain(*micro_batches)) for micro_batches in zip(*ranks, strict=True)]
    return [list(chain(*rounds[start : start + accumulation])) for start in range(0, len(rounds), accumulation)]


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("rows", [8, 37, 40, 41, 47])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_is_seen_once_and_only_the_last_batch_has_padding_rows(
    rows: int, world: int, micro: int, accumulation: int, grouped: bool
) -> None:
    batches = global_batches(rows, world, micro, grouped=grouped)
    seen = Counter(chain(*batches))
    padding_rows = seen.pop(PADDING_ROW, 0)
    assert seen == Counter(range(rows))
    assert [len(batch) for batch in batches] == [GLOBAL] * -(-rows // GLOBAL)
    assert batches[-1].count(PADDING_ROW) == padding_rows == -rows % GLOBAL
    counted = make_batches(rows, micro, accumulation, grouped=grouped)
    assert [counted.padding_rows(number) for number in range(2 * len(batches))] == 2 * [
        *[0] * (len(batches) - 1),
        padding_rows,
    ]


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_global_batches_hold_the_same_rows_in_every_world(
    world: int, micro: int, accumulation: int, grouped: bool
) -> None:
    reference = [sorted(batch) for batch in global_batches(47, 1, 8, grouped=grouped)]
    assert [sorted(batch) for batch in global_batches(47, world, micro, grouped=grouped)] == reference


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("first", [0, 1, 5])
def test_a_resumed_epoch_continues_with_the_batches_that_are_left(
    world: int, micro: int, accumulation: int, first: int
) -> None:
    whole = global_batches(47, world, micro, grouped=True)
    assert global_batches(47, world, micro, grouped=True, first=first) == whole[first:]


def test_every_epoch_has_an_order_of_its_own() -> None:
    batches = GlobalBatches(np.arange(1, 50, dtype=np.int32), ALONE, seed=3, grouped=True)
    orders = [list(chain(*batches.micro_batches(epoch, rank=0))) for epoch in range(3)]
    expected = [
        epoch_order(batches.lengths, seed=3, epoch=epoch, batch_size=GLOBAL, grouped=True) for epoch in range(3)
    ]
    assert [[row for row in order if row != PADDING_ROW] for order in orders] == [order.tolist() for order in expected]
    assert len({tuple(order) for order in orders}) == 3


def test_every_rank_gets_an_equal_part_of_the_long_rows() -> None:
    """Rows are numbered by descending length: two ranks, one micro-batch of 8 each, in four groups of 2 + 2 rows."""
    dealt = layout(BatchPlan(global_size=16, micro_size=8, accumulation=1), groups=4).reshape(-1).tolist()
    assert dealt[:8] == [0, 1, 4, 5, 8, 9, 12, 13]
    assert dealt[8:] == [2, 3, 6, 7, 10, 11, 14, 15]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17])
def test_the_data_continue_from_any_global_batch_across_epochs(start: int) -> None:
    """41 rows are six global batches. A run that skips batches has another position in the data than its step."""
    batches = GlobalBatches(np.arange(41, dtype=np.int32), ALONE, seed=1, grouped=False)
    whole = [batch for epoch in range(6) for batch in batches.micro_batches(epoch, rank=0)]
    found, number = [], start
    while number < len(whole):
        epoch, first = batches.place(number)
        mine = batches.micro_batches(epoch, rank=0, first=first)
        found += mine
        number += len(mine)
    assert found == whole[start:]


def packed_batches(world: int, micro: int, accumulation: int, *, first: int = 0) -> list[list[tuple[int, ...]]]:
    """The packs of each optimizer step of epoch 2 over all ranks, for 300 examples in packs of 64 tokens."""
    lengths = np.random.default_rng(3).integers(3, 40, 300).astype(np.int32)
    plan = BatchPlan(global_size=GLOBAL, micro_size=micro, accumulation=accumulation)
    batches = PackedBatches(lengths, plan, seed=1, capacity=64)
    ranks = [batches.micro_batches(2, rank=rank, first=first) for rank in range(world)]
    rounds = [list(chain(*micro_batches)) for micro_batches in zip(*ranks, strict=True)]
    steps = [list(chain(*rounds[start : start + accumulation])) for start in range(0, len(rounds), accumulation)]
    padding = [step.count((PADDING_ROW,)) for step in steps]
    assert padding == [batches.padding_rows(number) for number in range(first, batches.per_epoch)]
    return steps


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("first", [0, 2])
def test_packs_are_the_same_in_every_world_and_after_a_restart(
    world: int, micro: int, accumulation: int, first: int
) -> None:
    """A global batch is a number of packs, so the position in the data is that of unpacked rows."""
    reference = [sorted(batch) for batch in packed_batches(1, GLOBAL, 1)]
    found = [sorted(batch) for batch in packed_batches(world, micro, accumulation, first=first)]
    assert found == reference[first:]
    rows = Counter(row for batch in reference for pack in batch for row in pack)
    assert rows.pop(PADDING_ROW, 0) == reference[-1].count((PADDING_ROW,))
    assert rows == Counter(range(300))
