"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

import re
from typing import Any

from finetune_api.v1alpha1 import Lora

from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, ModelSizes, ParameterCounts


@METHODS.register
class LoraMethod(AdapterMethod[Lora]):
    """The update of an adapted matrix is the product of two small ones."""

    name = "lora"
    block = Lora
    title = "LoRA"
    adapter = "A LoRA adapter"
    tags = ("lora",)

    def parameters(self, sizes: ModelSizes, block: Lora) -> ParameterCounts:
        """rank * (rows + columns) of every adapted matrix."""
        chosen = (
            size
            for name, size in sizes.linear
            if block.targets is None or any(part in block.targets for part in name.split("."))
        )
        trained = block.rank * sum(chosen)
        return ParameterCounts(trained=trained, added=trained)

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
            task_type=task.peft_type,
        )
