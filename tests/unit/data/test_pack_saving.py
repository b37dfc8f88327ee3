"""What packs would save is estimated from the lengths, the batch and the model."""

import numpy as np
import pytest

from finetune_api.trainer_config import BatchPlan
from finetune_trainer.data.pack_saving import Costs, pack_saving

EQUAL = np.full(160, 64, dtype=np.int32)
MIXED = np.tile(np.array([8, 8, 8, 64], dtype=np.int32), 40)


def saving(
    lengths: np.ndarray, *, capacity: int, processes: int = 1, fixed: float = 0.0, attention: float = 0.0
) -> tuple[float, int] | None:
    batch = BatchPlan(global_size=16, micro_size=16 // processes, accumulation=1)
    packs = -(-int(lengths.sum()) // capacity)
    costs = Costs(fixed=fixed, attention=attention)
    found = pack_saving(lengths, batch, packs=packs, capacity=capacity, groups=None, seed=1, costs=costs)
    return None if found is None else (round(found.share, 3), found.global_batch)


@pytest.mark.parametrize(
    ("lengths", "settings", "expected"),
    [
        # Nothing is padded, so there is nothing to save.
        (EQUAL, {"capacity": 256}, (0.0, 4)),
        # Every batch is 64 tokens wide, and has 22 tokens of text in a row.
        (MIXED, {"capacity": 64}, (round(1 - 22 / 64, 3), 6)),
        # A row of 64 tokens costs 128 then, one of 256 tokens 256 + 1024.
        (EQUAL, {"capacity": 256, "attention": 1 / 64}, (-1.5, 4)),
        # Both have a pass in each step, which costs as much as all rows of it.
        (MIXED, {"capacity": 64, "fixed": 16 * 64}, (round((1 - 22 / 64) / 2, 3), 6)),
        # 16 texts are one pack, which two processes cannot share.
        (EQUAL, {"capacity": 1024, "processes": 2}, None),
        (EQUAL, {"capacity": 512, "processes": 2}, (0.0, 2)),
    ],
)
def test_the_saving(lengths: np.ndarray, settings: dict[str, float], expected: tuple[float, int] | None) -> None:
    assert saving(lengths, **settings) == expected  # type: ignore[arg-type]
