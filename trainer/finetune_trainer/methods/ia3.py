"""Infused adapters by inhibiting and amplifying inner activations, IA3 (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.ia3 import Ia3

from ..tasks import TrainingTask
from .adapters import AdapterMethod, linear_layers
from .base import METHODS, ModelSizes, ParameterCounts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@METHODS.register
class Ia3Method(AdapterMethod[Ia3]):
    """The outputs of a layer, or its inputs, are multiplied with a learned vector, which begins with ones."""

    name = "ia3"
    block = Ia3
    title = "IA3"
    default_learning_rate = 3e-3
    adapter = "An IA3 adapter"
    tags = ("ia3",)

    def parameters(self, sizes: ModelSizes, block: Ia3) -> ParameterCounts:
        """At most rows + columns of every scaled matrix; a layer has factors for one or the other.

        Without targetModules, of every matrix: which ones PEFT chooses depends on the architecture. Even so the bound
        is a few thousandths of the model.
        """
        trained = sum(
            sum(shape)
            for name, shape in sizes.linear
            if block.target_modules is None or any(part in block.target_modules for part in name.split("."))
        )
        return ParameterCounts(trained=trained, added=trained)

    def peft_config(self, block: Ia3, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`IA3Config`."""
        from peft import IA3Config

        return IA3Config(
            # None lets PEFT choose both by the architecture.
            target_modules=list(block.target_modules) if block.target_modules else None,
            feedforward_modules=[] if block.target_modules else None,
            # A vector for a module that is trained whole would be a second update of the same weights.
            exclude_modules=rf"({'|'.join(map(re.escape, trained_whole))})(\..*)?" if trained_whole else None,
            modules_to_save=list(trained_whole) or None,
            task_type=task.peft_type,
        )

    def advice(self, model: PreTrainedModel, block: Ia3) -> str:
        """PEFT does not know the layers of every architecture."""
        return (
            f"set spec.method.{self.name}.targetModules to the layers to scale, such as the keys, the values and the "
            f"first of the feed-forward network; linear layers of this model are {', '.join(linear_layers(model))}"
        )
