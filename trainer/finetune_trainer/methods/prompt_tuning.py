"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): embeddings that are learned, before those of the text."""

from typing import Any

from finetune_api.v1alpha1.methods.prompt_tuning import PromptTuning

from ..tasks import TrainingTask
from .base import METHODS, ModelSizes, ParameterCounts
from .prompt_learning import PromptLearningMethod


@METHODS.register
class PromptTuningMethod(PromptLearningMethod[PromptTuning]):
    """The encoder is a table of embeddings."""

    name = "promptTuning"
    block = PromptTuning
    title = "prompt tuning"
    adapter = "A prompt-tuning adapter"
    tags = ("prompt-tuning",)

    def parameters(self, sizes: ModelSizes, block: PromptTuning) -> ParameterCounts:
        """virtual tokens * hidden size."""
        trained = block.virtual_tokens * sizes.hidden_size
        return ParameterCounts(trained=trained, added=trained)

    def peft_config(self, block: PromptTuning, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`PromptTuningConfig`."""
        from peft import PromptTuningConfig, PromptTuningInit

        del trained_whole
        return PromptTuningConfig(
            num_virtual_tokens=block.virtual_tokens,
            # Better than random values (Lester et al. 2021, section 3.2).
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
            task_type=task.peft_type,
        )
