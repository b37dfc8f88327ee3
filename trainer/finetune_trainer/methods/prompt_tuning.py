"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): embeddings that are learned, before those of the text."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.prompt_tuning import PromptTuning

from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, LoadedAdapter, ModelSizes, ParameterCounts, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_PARAMETER = "prompt_encoder.default.embedding.weight"
"""PEFT's name in the model, (virtual tokens, hidden size)."""
_STORED = "prompt_embeddings"
"""PEFT's name in the file."""


@METHODS.register
class PromptTuningMethod(AdapterMethod[PromptTuning]):
    """The model gives logits for the tokens of the text alone, so losses and metrics need not know of the others."""

    name = "promptTuning"
    block = PromptTuning
    title = "prompt tuning"
    adapter = "A prompt-tuning adapter"
    tags = ("prompt-tuning",)

    def parameters(self, sizes: ModelSizes, block: PromptTuning) -> ParameterCounts:
        """virtual tokens * hidden size."""
        trained = block.virtual_tokens * sizes.hidden_size
        return ParameterCounts(trained=trained, added=trained)

    def virtual_tokens(self, block: PromptTuning) -> int:
        """As many as the block says."""
        return block.virtual_tokens

    def peft_config(self, block: PromptTuning, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`PromptTuningConfig`."""
        from peft import PromptTuningConfig, PromptTuningInit

        assert not trained_whole, "the support table has no task that may draw a head"
        return PromptTuningConfig(
            num_virtual_tokens=block.virtual_tokens,
            # Better than random values (Lester et al. 2021, section 3.2).
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
            task_type=task.peft_type,
        )

    def apply(self, model: PreTrainedModel, block: PromptTuning, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model with virtual tokens, its own parameters frozen."""
        adapted: nn.Module = _for_text_alone(super().apply(model, block, task, seed=seed))
        return adapted

    def save_adapter(self, model: Any, weights: Weights, folder: Path, *, base: str, revision: str | None) -> None:
        """A folder that `PeftModel.from_pretrained` loads.

        PEFT would save the model's own parameter instead of `weights`; under ZeRO-3, a rank has only a part of it.
        """
        from peft.utils import SAFETENSORS_WEIGHTS_NAME
        from safetensors.torch import save_file

        configuration = copy.copy(model.active_peft_config)
        configuration.base_model_name_or_path, configuration.revision = base, revision
        configuration.inference_mode = True
        configuration.save_pretrained(str(folder))
        save_file({_STORED: weights[_PARAMETER]}, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})

    def load_adapter(self, base: Any, folder: Path, uri: str) -> LoadedAdapter:
        """Load it as any user of PEFT would."""
        loaded = super().load_adapter(base, folder, uri)
        return loaded._replace(model=_for_text_alone(loaded.model))


def _for_text_alone(adapted: Any) -> Any:
    """Let PEFT's model return logits of shape (rows, tokens of the text, vocabulary), and continue from a cache.

    PEFT puts the virtual tokens before every input, also where a cache already holds them, and returns their logits.
    The methods are replaced on the instance: parameters keep their names.
    """
    from torch.nn import functional

    count: int = adapted.active_peft_config.num_virtual_tokens
    forward, continued, base = adapted.forward, adapted.generate, adapted.base_model
    can_skip = "logits_to_keep" in inspect.signature(base.forward).parameters

    def of_text(
        input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **others: Any
    ) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length():
            if attention_mask is not None:
                attention_mask = functional.pad(attention_mask, (count, 0), value=1)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values}
            return base(**inputs, **others)
        width = input_ids.shape[1]
        if can_skip:  # otherwise the largest tensor of the step is larger, and is copied to be cut
            others["logits_to_keep"] = width
        output = forward(input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **others)
        output.logits = output.logits[:, -width:]
        return output

    def generate(*arguments: Any, **others: Any) -> Any:
        with warnings.catch_warnings():
            # PEFT drops those of transformers, and the model counts them itself, by the length of the cache.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            return continued(*arguments, **others)

    adapted.forward, adapted.generate = of_text, generate
    return adapted
