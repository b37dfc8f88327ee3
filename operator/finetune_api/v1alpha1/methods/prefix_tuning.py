"""`spec.method.prefixTuning`."""

from typing import ClassVar

from ..model import Quantization
from ..results import ArtifactFormat
from ..tasks import Task
from .base import MethodSupport
from .prompt_learning import PromptLearning


class PrefixTuning(PromptLearning):
    """Learned keys and values before those of every text, in each layer (Li and Liang 2021, arXiv 2101.00190), through
    PEFT; the base model stays frozen. They are no part of the model's weights: `output.formats` must be [Adapter].
    `training.gradientCheckpointing` must be false, because recomputation would leave them out."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=(ArtifactFormat.ADAPTER,),
        # Encoders do not read keys and values of earlier tokens, and a decoder that classifies has the token ids only.
        tasks=(Task.CAUSAL_LM,),
        # transformers drops the cache, which holds the prefix, from layers that are recomputed.
        gradient_checkpointing=(False,),
        quantizations=tuple(Quantization),
    )

    projection: bool = False
    """Compute the keys and values with a network of two layers from embeddings. It is trained too and is not exported:
    more stable, but many times the parameters."""
