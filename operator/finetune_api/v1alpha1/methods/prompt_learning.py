"""Base class of the methods that train virtual tokens."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..model import Quantization
from ..results import ArtifactFormat
from ..tasks import Task
from ..training import Batching
from .base import MethodBlock, MethodSupport


class PromptLearning(MethodBlock):
    """Virtual tokens are no part of the model's weights, so there is no merged model."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=(ArtifactFormat.ADAPTER,),
        # A decoder that classifies looks for the last token of a row in its token ids, which embeddings do not have.
        tasks=(Task.CAUSAL_LM,),
        # They are put before a row, so only the first example of a pack would have them.
        batchings=(Batching.PADDED, Batching.LENGTH_GROUPED),
        quantizations=tuple(Quantization),
    )

    virtual_tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Number of virtual tokens. Each takes the place of a token of the text."""
