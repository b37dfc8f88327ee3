"""Wanda (Sun et al. 2023, arXiv 2306.11695): compares weights by their absolute value times the norm of their input.

The comparison is within each output, that is, within each row of a matrix of shape (outputs, inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Pruning, PruningAlgorithm

from ...errors import BadConfigError
from .base import PATH, PRUNERS, Masks, Pruner
from .matrices import Matrix, layer_matrices, matrices_note, pruned_count, sparsity_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@PRUNERS.register
class Wanda(Pruner):
    """All norms are measured in the model before pruning, in one pass; the paper prunes one layer after the other."""

    name = PruningAlgorithm.WANDA
    sets_zeros = True
    reads_inputs = True

    def note(self, model: PreTrainedModel, block: Pruning) -> str:
        """Count the weights."""
        sparsity, sizes = sparsity_of(block), {}
        for name, matrix in layer_matrices(model).items():
            outputs, inputs = matrix.oriented(matrix.weight).shape
            sizes[name] = outputs * pruned_count(inputs, sparsity)
        return matrices_note(model, block, sizes)

    def masks(self, model: PreTrainedModel, block: Pruning, run_rows: Callable[[], None]) -> Masks:
        """Measure the norms, then compare within each output."""
        matrices = layer_matrices(model)
        norms = _input_norms(matrices, run_rows)
        sparsity, found = sparsity_of(block), {}
        for name, matrix in matrices.items():
            scores = matrix.oriented(matrix.weight.detach()).float().abs() * norms[name]
            found[name] = matrix.oriented(_smallest_of_rows(scores, sparsity)).contiguous().cpu()
        return found


def _input_norms(matrices: dict[str, Matrix], run_rows: Callable[[], None]) -> dict[str, torch.Tensor]:
    """Return the norm of each input of every matrix over all tokens of the rows, of shape (inputs,).

    Raises BadConfigError for a linear layer whose module is not called: its inputs are not known.
    """
    squares: dict[str, torch.Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            squares[name] = squares.get(name, 0.0) + tokens.square().sum(0)

        return hook

    handles = [matrix.module.register_forward_pre_hook(recorder(name)) for name, matrix in matrices.items()]
    try:
        run_rows()
    finally:
        for handle in handles:
            handle.remove()
    if missing := sorted(matrices.keys() - squares.keys()):
        raise BadConfigError(
            f"{PATH}.algorithm must not be Wanda, because the base model does not call {missing[0]} as a module",
            advice="write Magnitude",
        )
    return {name: total.sqrt() for name, total in squares.items()}


def _smallest_of_rows(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return which values are the smallest `round(share * n)` of the n in their row; of equal ones, the first."""
    import torch

    order = scores.sort(dim=1, stable=True).indices[:, : pruned_count(scores.shape[1], share)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, value=True)
