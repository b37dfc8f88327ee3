"""Evaluates the validation split on all ranks.

The loss is weighted by token, not by batch, and no row is counted twice. No random numbers are drawn, so that the
dropout of the next step does not change, and logits are never gathered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from finetune_api.v1alpha1 import Metric, Task

from ..data.collate import Collator
from ..stop import StopFlag
from ..tasks import TASKS
from ..tasks.base import Split

Rows = npt.NDArray[np.int64]

_MOST_ROWS = 512
"""Rows of a validation batch on a GPU, however short they are."""


def validation_batches(
    lengths: Sequence[int] | npt.NDArray[np.int32], rows: int, *, max_tokens: int | None = None
) -> list[Rows]:
    """Return the row numbers of each batch, the longest rows first.

    A batch has `rows` rows. With `max_tokens`, it has more if they are short: as many as have at most so many tokens,
    padded to the longest one. A batch of the training with so many tokens fits the memory, and a forward pass without
    a backward pass needs less.
    """
    each = np.asarray(lengths)
    order = np.argsort(each, kind="stable")[::-1].astype(np.int64)
    batches, start = [], 0
    while start < len(order):
        size = rows
        if max_tokens is not None:
            size = max(rows, min(_MOST_ROWS, max_tokens // max(1, int(each[order[start]]))))
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclass
class Validator:
    """Evaluates one split; every call is collective."""

    dataset: Split
    collator: Collator
    task: Task
    labels: tuple[str, ...]
    batch_size: int
    """Rows per rank and forward pass."""
    device: torch.device
    max_tokens: int | None = None
    """A batch has more rows if they have at most so many tokens, see `validation_batches`."""

    @torch.no_grad()
    def figures(self, model: nn.Module, stop: StopFlag) -> dict[Metric, float] | None:
        """Return the loss and the task's metrics, the same on every rank.

        Returns None on every rank if a stop is requested on any rank. The validation then ends after the current batch,
        because it may take longer than the pod's grace period.
        """
        was_training = model.training
        model.eval()
        task = TASKS[self.task]
        sums = torch.zeros(2, dtype=torch.float64)
        scores = task.validation_scores(len(self.dataset), self.labels)
        for indices, counts in self._batches():
            # Reduced during the forward pass, so that it takes no additional time.
            asked = torch.tensor([float(stop.requested)])
            exchange = dist.all_reduce(asked, async_op=True)
            rows = self.collator([self.dataset[int(index)] for index in indices])
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in rows.items()}
            logits = model(**{name: batch[name] for name in task.model_inputs}).logits
            if counts:
                sums[0] += task.loss(logits, batch).double().cpu()
                sums[1] += task.targets(batch)
                scores.add(indices, logits, batch)
            exchange.wait()
            if float(asked) > 0:
                model.train(was_training)
                return None
        model.train(was_training)
        dist.all_reduce(sums)
        loss = float(sums[0] / sums[1].clamp(min=1.0))
        for tensor in scores.tensors():
            dist.all_reduce(tensor)
        return scores.metrics(loss)

    def _batches(self) -> list[tuple[Rows, bool]]:
        """Return this rank's batches of row indices, sorted by length, and whether each batch counts.

        Every rank gets the same number of batches, because all ranks must take part in a forward pass under ZeRO-3. The
        last batch of a rank may therefore be a repetition that does not count.
        """
        batches = validation_batches(self.dataset.lengths, self.batch_size, max_tokens=self.max_tokens)
        rank, world = dist.get_rank(), dist.get_world_size()
        share = -(-len(batches) // world)
        mine = [(batch, True) for batch in batches[rank::world]]
        return mine + [(batches[-1], False)] * (share - len(mine))
