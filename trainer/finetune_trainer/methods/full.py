"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import FullFineTune

from .base import METHODS, FineTuningMethod, ModelSizes, ParameterCounts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@METHODS.register
class Full(FineTuningMethod[FullFineTune]):
    """The model itself."""

    name = "full"
    block = FullFineTune
    title = "full fine-tune"
    is_adapter = False

    def parameters(self, sizes: ModelSizes, block: FullFineTune) -> ParameterCounts:
        """All."""
        del block
        return ParameterCounts(trained=sizes.parameters, added=0)

    def apply(self, model: PreTrainedModel, *_: Any, **__: Any) -> nn.Module:
        """Nothing to change."""
        return model

    def merged(self, model: nn.Module, weights: Any, *_: Any) -> Any:
        """What was trained."""
        return model, dict(weights)
