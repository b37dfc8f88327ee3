"""What the methods share that train virtual tokens before every text: PEFT calls them prompt learning."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_api.v1alpha1.methods.prompt_learning import PromptLearning

from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import LoadedAdapter, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Block = TypeVar("Block", bound=PromptLearning)

_ENCODER = "prompt_encoder.default."
"""What PEFT puts before the names of the parameters of its encoder."""
_STORED = "prompt_embeddings"
"""PEFT's name in the file: the output of the encoder for all virtual tokens."""


class PromptLearningMethod(AdapterMethod[Block]):
    """The model gives logits for the tokens of the text alone, so losses and metrics need not know of the others."""

    def virtual_tokens(self, block: Block) -> int:
        """As many as the block says."""
        return block.virtual_tokens

    def apply(self, model: PreTrainedModel, block: Block, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model with virtual tokens, its own parameters frozen."""
        assert not task.may_draw_head, "the support table has no task that may draw a head"
        adapted: nn.Module = _for_text_alone(super().apply(model, block, task, seed=seed))
        return adapted

    def save_adapter(self, model: Any, weights: Weights, folder: Path, *, base: str, revision: str | None) -> Weights:
        """A folder that `PeftModel.from_pretrained` loads.

        PEFT would save the output of the model's own encoder instead of that of `weights`; under ZeRO-3, a rank has
        only a part of it.
        """
        from peft.utils import SAFETENSORS_WEIGHTS_NAME
        from safetensors.torch import save_file

        configuration = copy.copy(model.active_peft_config)
        configuration.base_model_name_or_path, configuration.revision = base, revision
        own = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
        if getattr(configuration, "tokenizer_name_or_path", None):
            configuration.tokenizer_name_or_path = base  # not the folder of this machine
        encoded = self.encoded(configuration, own)
        configuration.inference_mode = True
        configuration.save_pretrained(str(folder))
        written = {_STORED: encoded}
        save_file(written, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        return written

    def encoded(self, configuration: Any, weights: Weights) -> torch.Tensor:
        """What the encoder with these weights computes, of shape (virtual tokens, values of each)."""
        del configuration
        return weights["embedding.weight"]

    def load_adapter(self, base: Any, folder: Path, uri: str) -> LoadedAdapter:
        """Load it as any user of PEFT would."""
        loaded = super().load_adapter(base, folder, uri)
        return loaded._replace(model=_for_text_alone(loaded.model))


def encoded_by(kind: type[nn.Module], configuration: Any, weights: Weights) -> torch.Tensor:
    """The output of an encoder for all virtual tokens, computed in 32 bit."""
    import torch

    with torch.device("meta"):  # no values are drawn
        encoder = kind(configuration)
    encoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    with torch.no_grad():
        encoded: torch.Tensor = encoder.eval()(torch.arange(configuration.num_virtual_tokens).unsqueeze(0))[0]
    return encoded.contiguous()


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
