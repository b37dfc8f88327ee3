"""Losses of the trained model on a few held-out rows, which every exported folder must reproduce."""

import torch
import torch.distributed as dist
from torch import nn

from finetune_api.v1alpha1 import Task

from ..data.collate import Collator
from ..evaluate.reload import Reference, Sample
from ..tasks import TASKS


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
