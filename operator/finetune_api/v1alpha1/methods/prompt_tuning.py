"""`spec.method.promptTuning`."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..data import Packing
from ..results import ArtifactFormat
from ..tasks import Task
from .base import MethodBlock, MethodSupport


class PromptTuning(MethodBlock):
    """Learned embeddings before every text (Lester et al. 2021, arXiv 2104.08691), through PEFT; the base model stays
    frozen. They are no part of the model's weights, so there is no merged model: `output.formats` must be [Adapter]."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=(ArtifactFormat.ADAPTER,),
        # A decoder that classifies looks for the last token of a row in its token ids, which embeddings do not have.
        tasks=(Task.CAUSAL_LM,),
        # The embeddings are put before a row, so only its first example would have them.
        packings=(Packing.PADDED, Packing.LENGTH_GROUPED),
    )

    virtual_tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Number of embeddings. Each takes the place of a token of the text."""
