"""Which rows each rank sees: together every row of an epoch once, whatever the world."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from finetune_api.trainer_config import BatchPlan
from finetune_trainer.data.order import cheapest_grouping
from finetune_trainer.data.sampler import SeededSampler
from finetune_trainer.train.rows import PADDING_ROW, WholeBatches, layout

GLOBAL = 8
WORLDS = [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (2, 1, 4), (4, 2, 1), (4, 1, 2)]
"""(ranks, micro batch, accumulation), all of the same global batch."""


def global_batches(rows: int, world: int, micro: int, *, grouped: bool) -> list[list[int]]:
    """The rows of each optimizer step over all ranks, dealt out as accelerate does it."""
    lengths = np.random.default_rng(3).integers(3, 40, rows).astype(np.int32)
    shards = []
    for rank in range(world):
        order = SeededSampler(lengths, seed=1, batch_size=GLOBAL, grouped=grouped)
        plan = BatchPlan(global_size=GLOBAL, micro_size=micro, accumulation=GLOBAL // world // micro)
        groups = cheapest_grouping(lengths, plan, seed=1, fixed=0).groups if grouped else 1
        sampler = WholeBatches(order, layout=layout(plan, groups=groups))
        sampler.set_epoch(2)
        batches = BatchSamplerShard(BatchSampler(sampler, micro, drop_last=False), world, rank)
        shards.append(list(batches))
    assert len({len(shard) for shard in shards}) == 1, "ranks would wait for each other for ever"
    rounds = [[row for shard in shards for row in shard[index]] for index in range(len(shards[0]))]
    accumulation = GLOBAL // world // micro
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


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_global_batches_hold_the_same_rows_in_every_world(
    world: int, micro: int, accumulation: int, grouped: bool
) -> None:
    reference = [sorted(batch) for batch in global_batches(47, 1, 8, grouped=grouped)]
    assert [sorted(batch) for batch in global_batches(47, world, micro, grouped=grouped)] == reference


def test_every_rank_gets_an_equal_part_of_the_long_rows() -> None:
    """Rows are numbered by descending length: two ranks, one micro batch of 8 each, in four groups of 2 + 2 rows."""
    dealt = layout(BatchPlan(global_size=16, micro_size=8, accumulation=1), groups=4)
    assert dealt[:8] == [0, 1, 4, 5, 8, 9, 12, 13]
    assert dealt[8:] == [2, 3, 6, 7, 10, 11, 14, 15]


@pytest.mark.parametrize("offset", [0, 1, 5, 6, 17])
def test_an_offset_shifts_the_data_across_epochs(offset: int) -> None:
    """41 rows are six global batches, so that an epoch of the loop takes its last batches from the next order."""
    lengths = np.arange(41, dtype=np.int32)

    def stream(epochs: int, shift: int) -> list[int]:
        sampler = WholeBatches(SeededSampler(lengths, seed=1, batch_size=GLOBAL, grouped=False), layout=range(GLOBAL))
        sampler.set_offset(shift)
        found = []
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            rows = list(sampler)
            assert len(rows) == len(sampler) == 6 * GLOBAL
            found += rows
        return found

    whole = stream(6, 0)
    assert stream(3, offset) == whole[offset * GLOBAL :][: 3 * 6 * GLOBAL]
