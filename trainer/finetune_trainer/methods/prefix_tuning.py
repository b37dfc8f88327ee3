"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190): learned keys and values before those of the text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.prefix_tuning import PrefixTuning

from ..errors import BadConfigError
from ..tasks import TrainingTask
from .base import METHODS, ModelSizes, ParameterCounts, Weights
from .prompt_learning import PromptLearningMethod, encoded_by

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


@METHODS.register
class PrefixTuningMethod(PromptLearningMethod[PrefixTuning]):
    """Every row begins with a cache that holds the prefix."""

    name = "prefixTuning"
    block = PrefixTuning
    title = "prefix tuning"
    default_learning_rate = 1e-3
    adapter = "A prefix-tuning adapter"
    tags = ("prefix-tuning",)

    def parameters(self, sizes: ModelSizes, block: PrefixTuning) -> ParameterCounts:
        """Keys and values of every virtual token and layer; with a projection, its two layers and embeddings."""
        width = sizes.key_value_size
        outputs = 2 * sizes.layers * width
        trained = block.virtual_tokens * outputs
        if block.projection:
            trained = block.virtual_tokens * width + width * (width + 1) + outputs * (width + 1)
        return ParameterCounts(trained=trained, added=trained)

    def peft_config(self, block: PrefixTuning, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`PrefixTuningConfig`."""
        from peft import PrefixTuningConfig

        del trained_whole
        return PrefixTuningConfig(
            num_virtual_tokens=block.virtual_tokens, prefix_projection=block.projection, task_type=task.peft_type
        )

    def check(self, folder: Path, block: PrefixTuning, task: TrainingTask) -> None:
        """Run a forward pass too: PEFT does not know whether layers have keys and values of the shape that it makes."""
        import torch
        from transformers import AutoConfig

        super().check(folder, block, task)
        with torch.device("meta"):
            skeleton = task.model_class.from_config(AutoConfig.from_pretrained(folder))
            adapted: PeftModel = self.adapted(skeleton, block, task)
            try:
                adapted(input_ids=torch.ones((1, 2), dtype=torch.long), use_cache=False)
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                if "meta tensors" in str(error):
                    return  # the model's code reads values of tensors, so only the training can tell
                raise BadConfigError(
                    f"spec.method.{self.name} cannot be applied to {type(skeleton).__name__}, whose layers do not take "
                    f"keys and values of PEFT: {error}",
                    advice=self.advice(skeleton, block),
                ) from error

    def advice(self, model: PreTrainedModel, block: PrefixTuning) -> str:
        """What to write where PEFT refuses the model."""
        del model, block
        return "use another base model, or spec.method.promptTuning"

    def encoded(self, configuration: Any, weights: Weights) -> torch.Tensor:
        """Keys and values, of shape (virtual tokens, 2 * layers * key-value heads * head size)."""
        from peft import PrefixEncoder

        return encoded_by(PrefixEncoder, configuration, weights)
