"""Which rows each rank sees: together every row of an epoch once, whatever the world."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from finetune_trainer.data.sampler import SeededSampler
from finetune_trainer.train.rows import BLANK, WholeBatches

GLOBAL = 8
WORLDS = [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (2, 1, 4), (4, 2, 1), (4, 1, 2)]
"""(ranks, micro batch, accumulation), all of the same global batch."""


def global_batches(rows: int, world: int, micro: int, *, grouped: bool) -> list[list[int]]:
    """The rows of each optimizer step over all ranks, dealt out as accelerate does it."""
    lengths = np.random.default_rng(3).integers(3, 40, rows).astype(np.int32)
    shards = []
    for rank in range(world):
        order = SeededSampler(lengths, seed=1, batch_size=GLOBAL, grouped=grouped)
        sampler = WholeBatches(order, global_batch=GLOBAL)
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
def test_every_row_is_seen_once_and_only_the_last_batch_holds_blanks(
    rows: int, world: int, micro: int, accumulation: int, grouped: bool
) -> None:
    batches = global_batches(rows, world, micro, grouped=grouped)
    seen = Counter(chain(*batches))
    blanks = seen.pop(BLANK, 0)
    assert seen == Counter(range(rows))
    assert [len(batch) for batch in batches] == [GLOBAL] * -(-rows // GLOBAL)
    assert batches[-1].count(BLANK) == blanks == -rows % GLOBAL


@pytest.mark.parametrize(("world", "micro", "accumulation"), WORLDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_global_batches_hold_the_same_rows_in_every_world(
    world: int, micro: int, accumulation: int, grouped: bool
) -> None:
    reference = [sorted(batch) for batch in global_batches(47, 1, 8, grouped=grouped)]
    assert [sorted(batch) for batch in global_batches(47, world, micro, grouped=grouped)] == reference
