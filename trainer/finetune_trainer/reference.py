"""Losses of the trained model on a few held-out rows, which every exported folder must reproduce.

The train stage measures them and stores them in the run's folder; the evaluate stage reads them. Both use batches of
one row, because padding changes the results of some architectures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from finetune_api.trainer_config import Message, Prepared, TrainerConfig
from finetune_api.v1alpha1 import Task

from .data.collate import Collator
from .store.client import ObjectStore
from .tasks import TASKS
from .tasks.base import Split

_MAX_ROWS = 32
_MAX_TOKENS = 16_384
"""Approximate size of the whole sample: fewer rows are used if they are long."""


class Reference(Message):
    """`reference.json` in the run's folder: losses of the trained model on a few rows."""

    split: str
    rows: tuple[int, ...]
    """Row indices within the split."""
    losses: tuple[float, ...]
    """Loss of each of these rows in nats: of its label, or the mean over the tokens that carry loss."""


@dataclass(frozen=True)
class Sample:
    """Rows that both stages measure."""

    split: str
    data: Split
    rows: tuple[int, ...]


def write_reference(config: TrainerConfig, store: ObjectStore, reference: Reference) -> None:
    """Store the losses for the evaluate stage. Replaces those of an earlier attempt."""
    # Not pydantic's JSON, which would write NaN as null.
    text = json.dumps(reference.model_dump(), indent=1)
    store.put(config.layout.reference, text.encode(), content_type="application/json")


def read_reference(config: TrainerConfig, store: ObjectStore) -> Reference:
    """Read the losses stored by the train stage. Raises ObjectMissingError if there are none."""
    return Reference.model_validate(store.get_json(config.layout.reference))


def choose_sample(prepared: Prepared, open_split: Callable[[str], Split]) -> Sample:
    """Up to 32 evenly spaced rows of the validation split; of the test or the training split if it is missing.

    Rows in which no token carries loss are excluded.
    """
    sample: Sample | None = None
    for split in ("validation", "test", "train"):
        if not getattr(prepared.counts, split):
            continue
        data = open_split(split)
        wanted = min(len(data), _MAX_ROWS, max(1, int(_MAX_TOKENS / data.lengths.mean())))
        spread = np.unique(np.linspace(0, len(data) - 1, wanted).astype(np.int64)).tolist()
        sample = Sample(split, data, tuple(row for row in spread if TASKS[prepared.task].has_target(data[row])))
        if sample.rows:
            break
    assert sample is not None, "a prepared dataset has training rows"
    return sample


@torch.no_grad()
def measure(model: nn.Module, sample: Sample, *, task: Task, device: torch.device) -> Reference:
    """Return the loss of every row of the sample, the same on every rank. Collective; `model` is the engine.

    The rows are distributed over the ranks. Under ZeRO-3, all ranks must take part in a forward pass, so some compute a
    row a second time without counting it.
    """
    if not sample.rows:
        return Reference(split=sample.split, rows=(), losses=())
    was_training = model.training
    model.eval()
    definition = TASKS[task]
    collate = Collator(0, task)  # a batch is one row, so nothing is padded
    losses = torch.zeros(len(sample.rows), dtype=torch.float64)
    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(sample.rows), world):
        position = min(start + rank, len(sample.rows) - 1)
        row = collate([sample.data[sample.rows[position]]])
        batch = {name: tensor.to(device) for name, tensor in row.items()}
        logits = model(**{name: batch[name] for name in definition.model_inputs}).logits
        if start + rank != position:
            continue
        losses[position] = definition.loss(logits, batch).double().cpu() / definition.targets(batch)
    model.train(was_training)
    dist.all_reduce(losses)
    return Reference(split=sample.split, rows=sample.rows, losses=tuple(losses.tolist()))
