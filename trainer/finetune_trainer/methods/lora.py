"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Lora
from finetune_api.v1alpha1.methods.lora import LoraVariant

from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, ModelSizes, ParameterCounts
from .counts import ActivationCounts

if TYPE_CHECKING:
    from torch import nn

_MATRIX_B = re.compile(r"\.lora_(embedding_)?B\.")
"""Part of PEFT's names of the matrices B."""


@METHODS.register
class LoraMethod(AdapterMethod[Lora]):
    """The update of an adapted matrix is the product of two small ones."""

    name = "lora"
    block = Lora
    title = "LoRA"
    default_learning_rate = 2e-4
    adapter = "A LoRA adapter"
    tags = ("lora",)

    def parameters(self, sizes: ModelSizes, block: Lora) -> ParameterCounts:
        """rank * (rows + columns) of every adapted matrix; for DoRA, at most one more for each row.

        Which axis of a matrix has its outputs depends on the architecture, so that both are counted.
        """
        trained = (block.rank + (block.variant is LoraVariant.DORA)) * sum(map(sum, _adapted_matrices(sizes, block)))
        return ParameterCounts(trained=trained, added=trained)

    def activations(self, sizes: ModelSizes, block: Lora) -> ActivationCounts:
        """DoRA keeps two results for each output of an adapted matrix, dropout the mask and the result of each input.

        For each matrix in turn, DoRA computes the update of the whole matrix (from an identity matrix), its multiple
        and its sum with the base matrix. Which axis of a matrix has its outputs depends on the architecture, but is the
        same for all, so that the larger sum is counted.
        """
        matrices = _adapted_matrices(sizes, block)
        width = max((sum(axis) for axis in zip(*matrices, strict=True)), default=0)
        is_dora = block.variant is LoraVariant.DORA
        return ActivationCounts(
            kept=2 * width * (is_dora + (block.dropout > 0)),
            temporary=max((max(shape) ** 2 + 3 * prod(shape) for shape in matrices), default=0) if is_dora else 0,
        )

    def peft_config(self, block: Lora, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`LoraConfig`."""
        from peft import LoraConfig

        return LoraConfig(
            r=block.rank,
            lora_alpha=block.scale,
            lora_dropout=block.dropout,
            target_modules=list(block.targets) if block.targets else "all-linear",
            # An adapter inside a module that is trained whole would be a second update of the same weights.
            exclude_modules=rf"({'|'.join(map(re.escape, trained_whole))})(\..*)?" if trained_whole else None,
            modules_to_save=list(trained_whole) or None,
            use_rslora=block.variant is LoraVariant.RSLORA,
            use_dora=block.variant is LoraVariant.DORA,
            task_type=task.peft_type,
        )

    def rate_factors(self, model: nn.Module, block: Lora) -> dict[str, float]:
        """`learningRateRatio` for the matrices B, also those of embeddings."""
        ratio = block.learning_rate_ratio or 1.0
        return {} if ratio == 1.0 else {name: ratio for name, _ in model.named_parameters() if _MATRIX_B.search(name)}


def _adapted_matrices(sizes: ModelSizes, block: Lora) -> list[tuple[int, int]]:
    return [
        shape
        for name, shape in sizes.linear
        if block.targets is None or any(part in block.targets for part in name.split("."))
    ]
