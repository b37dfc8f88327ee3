"""`spec.model`: the base model."""

from enum import StrEnum
from typing import Annotated

from .base import ApiModel, ModelUri
from .scope import Scope
from .tasks import Task


class Dtype(StrEnum):
    """The floating-point type of the forward and backward pass. Optimizer state is always 32-bit."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    """The loss is scaled, because small gradients would underflow. For GPUs without BFloat16."""


class Model(ApiModel, scope=Scope.DATA):
    """The base model, in Hugging Face layout."""

    uri: ModelUri
    """Where the base model is: `s3://bucket/prefix`, `hf://[organisation/]name[@revision]`; for local runs also
    `file:///path`. A run continues to use the files that it was prepared with, even if the revision or the prefix
    changes later."""

    task: Task | None = None
    """Head and loss. Absent: SequenceClassification for Classification data, TokenClassification for data of the format
    of that name, CausalLM for every other format."""

    dtype: Annotated[Dtype | None, Scope.RUN] = None
    """Absent: BFloat16 with GPUs, Float16 with GPUs without it (older than Ampere), else Float32."""
