"""`spec.method.pTuning`."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .prompt_learning import PromptLearning


class Reparameterization(StrEnum):
    """The network that computes the virtual tokens."""

    MLP = "MLP"
    LSTM = "LSTM"


class PTuning(PromptLearning):
    """Embeddings before every text that a small network computes (P-tuning; Liu et al. 2021, arXiv 2103.10385), through
    PEFT; the base model stays frozen. The network is trained too; the adapter has its output only, so it is as small as
    that of prompt tuning. There is no merged model: `output.formats` must be [Adapter]."""

    encoder_reparameterization: Reparameterization = Reparameterization.MLP
    """MLP has three linear layers, LSTM two bidirectional layers and two linear ones."""

    encoder_hidden_size: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Width of the network. Absent: the hidden size of the base model."""
