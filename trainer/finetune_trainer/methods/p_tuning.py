"""P-tuning (Liu et al. 2021, arXiv 2103.10385): embeddings before the text that a small network computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.p_tuning import PTuning, Reparameterization

from ..tasks import TrainingTask
from .base import METHODS, ModelSizes, ParameterCounts, Weights
from .prompt_learning import PromptLearningMethod, encoded_by

if TYPE_CHECKING:
    import torch


@METHODS.register
class PTuningMethod(PromptLearningMethod[PTuning]):
    """The network is trained with the embeddings that it reads, and is not exported."""

    name = "pTuning"
    block = PTuning
    title = "P-tuning"
    default_learning_rate = 1e-3
    adapter = "A P-tuning adapter"
    tags = ("p-tuning",)

    def parameters(self, sizes: ModelSizes, block: PTuning) -> ParameterCounts:
        """Embeddings and network."""
        size = sizes.hidden_size
        width = block.encoder_hidden_size or size
        if block.encoder_reparameterization is Reparameterization.LSTM:
            # Four gates with two biases each, in two directions; the second layer reads both directions of the first.
            layers = sum(2 * 4 * width * (inputs + width + 2) for inputs in (size, 2 * width))
            head = 2 * width * (2 * width + 1) + size * (2 * width + 1)
            network = layers + head
        else:
            network = width * (size + 1) + width * (width + 1) + size * (width + 1)
        trained = block.virtual_tokens * size + network
        return ParameterCounts(trained=trained, added=trained)

    def peft_config(self, block: PTuning, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`PromptEncoderConfig`."""
        from peft import PromptEncoderConfig
        from peft.tuners.p_tuning import PromptEncoderReparameterizationType

        del trained_whole
        return PromptEncoderConfig(
            num_virtual_tokens=block.virtual_tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType[block.encoder_reparameterization],
            encoder_hidden_size=block.encoder_hidden_size,  # type: ignore[arg-type]  # None: the hidden size
            task_type=task.peft_type,
        )

    def encoded(self, configuration: Any, weights: Weights) -> torch.Tensor:
        """Embeddings, of shape (virtual tokens, hidden size)."""
        from peft import PromptEncoder

        return encoded_by(PromptEncoder, configuration, weights)
