"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626): the smallest weights of each matrix become zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_api.v1alpha1 import Pruning, PruningAlgorithm

from .base import PRUNERS, Masks, Pruner
from .matrices import layer_matrices, matrices_note, pruned_count, sparsity_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@PRUNERS.register
class Magnitude(Pruner):
    """Comparisons of absolute values only, so every machine chooses the same weights."""

    name = PruningAlgorithm.MAGNITUDE
    sets_zeros = True

    def note(self, model: PreTrainedModel, block: Pruning) -> str:
        """Count the weights."""
        sparsity = sparsity_of(block)
        sizes = {name: pruned_count(matrix.weight.numel(), sparsity) for name, matrix in layer_matrices(model).items()}
        return matrices_note(model, block, sizes)

    def masks(self, model: PreTrainedModel, block: Pruning, run_rows: Callable[[], None]) -> Masks:
        """Compare the weights within each matrix."""
        del run_rows
        sparsity = sparsity_of(block)
        weights = {name: matrix.weight.detach() for name, matrix in layer_matrices(model).items()}
        return {name: smallest(weight.abs(), sparsity) for name, weight in weights.items()}


def smallest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return which values are the smallest `round(share * n)` of n; of equal ones, the first. On the CPU."""
    import torch

    flat = values.cpu().flatten()
    count = pruned_count(flat.numel(), share)
    if count == 0:
        return torch.zeros(values.shape, dtype=torch.bool)
    limit = flat.kthvalue(count).values
    chosen = flat < limit
    chosen[(flat == limit).nonzero()[: count - int(chosen.sum()), 0]] = True
    return chosen.view(values.shape)
