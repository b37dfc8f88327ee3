"""Tuning of the normalization layers (Zhao et al. 2023, arXiv 2312.11420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.layer_norm_tuning import LayerNormTuning

from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, ModelSizes, ParameterCounts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@METHODS.register
class LayerNormTuningMethod(AdapterMethod[LayerNormTuning]):
    """PEFT trains a copy of each layer, which takes the place of the original in a merged model."""

    name = "layerNormTuning"
    block = LayerNormTuning
    title = "layer-norm tuning"
    default_learning_rate = 1e-3
    adapter = "A layer-norm-tuning adapter"
    tags = ("ln-tuning",)

    def parameters(self, sizes: ModelSizes, block: LayerNormTuning) -> ParameterCounts:
        """As many as the normalization layers have."""
        del block
        return ParameterCounts(trained=sizes.norms, added=sizes.norms)

    def peft_config(self, block: LayerNormTuning, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`LNTuningConfig`, without the layers."""
        from peft import LNTuningConfig

        return LNTuningConfig(modules_to_save=list(trained_whole) or None, task_type=task.peft_type)

    def peft_config_for(self, model: PreTrainedModel, block: LayerNormTuning, task: TrainingTask) -> Any:
        """With all normalization layers; PEFT lists them for few architectures."""
        config = super().peft_config_for(model, block, task)
        whole = tuple(f"{name}." for name in config.modules_to_save or ())
        config.target_modules = [
            name for name, module in model.named_modules() if _is_norm(module) and not f"{name}.".startswith(whole)
        ]
        return config


def _is_norm(module: nn.Module) -> bool:
    """`nn.LayerNorm`, or a class of a model such as `LlamaRMSNorm`."""
    return type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))
