"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): embeddings that are learned, before those of the text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.prompt_tuning import PromptTuning

from ..errors import BadConfigError
from ..tasks import TrainingTask
from .base import METHODS, ModelSizes, ParameterCounts
from .prompt_learning import PromptLearningMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@METHODS.register
class PromptTuningMethod(PromptLearningMethod[PromptTuning]):
    """The encoder is a table of embeddings."""

    name = "promptTuning"
    block = PromptTuning
    title = "prompt tuning"
    default_learning_rate = 3e-2
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

    def peft_config_for(self, model: PreTrainedModel, block: PromptTuning, task: TrainingTask) -> Any:
        """With the text that the embeddings start from, and the tokenizer of the base model."""
        from peft import PromptTuningInit

        config = super().peft_config_for(model, block, task)
        if block.initial_text is not None:
            config.prompt_tuning_init = PromptTuningInit.TEXT
            config.prompt_tuning_init_text = block.initial_text
            config.tokenizer_name_or_path = model.name_or_path
        return config

    def check(self, folder: Path, block: PromptTuning, task: TrainingTask) -> None:
        """Refuse a text that PEFT would truncate."""
        from transformers import AutoTokenizer

        if block.initial_text is not None:
            tokens = len(AutoTokenizer.from_pretrained(folder)(block.initial_text)["input_ids"])
            if not 0 < tokens <= block.virtual_tokens:
                raise BadConfigError(
                    f"spec.method.{self.name}.initialText must have between 1 and {block.virtual_tokens} tokens "
                    f"(virtualTokens), not {tokens}",
                    advice=f"set virtualTokens to {tokens} or more, or shorten the text" if tokens else "write a text",
                )
        super().check(folder, block, task)
