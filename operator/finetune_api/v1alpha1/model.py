"""`spec.model`: the base model."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .base import ApiModel, ModelUri, matching
from .scope import Scope
from .tasks import Task


class Dtype(StrEnum):
    """The floating-point type of the forward and backward pass. Optimizer state is always 32-bit."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    """The loss is scaled, because small gradients would underflow. For GPUs without BFloat16."""


Word = Annotated[
    str,
    Field(min_length=1),
    matching(r"^[^\x00-\x20\x7f]+$", "a word without spaces, such as myocarditis", max_length=64),
]
"""A word that becomes a token."""

MAX_WORDS = 1000


class Vocabulary(ApiModel, scope=Scope.DATA):
    """Tokens that are added to tokenizer and embeddings. At least one of the fields. `full` trains all rows of the
    embeddings, and `lora` only the new ones."""

    add: Annotated[tuple[Word, ...], Field(max_length=MAX_WORDS)] = ()
    """Words that become one token each. If tokens of the base model contain the space before a word, a word becomes two
    tokens: with the space and without it."""

    learn: Annotated[int, Field(ge=1, le=50_000)] | None = None
    """Maximum number of tokens to learn from the training split: words of at least 4 letters that occur at least 3
    times and that the tokenizer divides, those first that save most tokens."""


class Quantization(StrEnum):
    """How the matrices of a frozen base model are stored. Computations use `dtype`."""

    NF4 = "NF4"
    """4 bits for each weight, on the quantiles of a normal distribution (QLoRA; Dettmers et al. 2023, arXiv
    2305.14314), with a scale for each block of 64 weights, which is quantized too."""
    INT8 = "Int8"
    """8 bits for each weight, with a scale for each row (Dettmers et al. 2022, arXiv 2208.07339). Only the weights
    are quantized, not the activations."""


class Model(ApiModel, scope=Scope.DATA):
    """The base model, in Hugging Face layout."""

    uri: ModelUri
    """Where the base model is: `s3://bucket/prefix`, `hf://[organization/]name[@revision]`; for local runs also
    `file:///path`. A run continues to use the files that it was prepared with, even if the revision or the prefix
    changes later."""

    task: Task | None = None
    """Head and loss. Absent: SequenceClassification for Classification data, TokenClassification for data of the format
    of that name, CausalLM for every other format. MaskedLM continues the pre-training of an encoder on Text."""

    vocabulary: Vocabulary | None = None
    """Adds words of the domain to the vocabulary. Absent: the vocabulary of the base model."""

    dtype: Annotated[Dtype | None, Scope.RUN] = None
    """Absent: BFloat16 with GPUs, Float16 with GPUs without it (older than Ampere), else Float32."""

    quantization: Annotated[Quantization | None, Scope.RUN] = None
    """NF4 (4 bits) or Int8 for the matrices of the base model, which an adapter is trained on: less memory, and slower.
    Embeddings, head and normalization layers are not quantized. The merged model has `dtype`. Absent: no quantization.
    """
