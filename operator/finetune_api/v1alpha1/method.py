"""`spec.method`: which parameters move."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel


class FullFineTune(ApiModel):
    """Every parameter is trained."""


class Lora(ApiModel):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through PEFT; the base model stays frozen."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank r of the update B*A."""

    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scale of the update is alpha / rank. Absent: twice the rank."""

    dropout: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Dropout before the adapter's first matrix."""

    targets: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=1, max_length=64)] | None = (
        None
    )
    """Names of the linear layers to adapt, such as `q_proj`. Absent: every linear layer but the head."""


class Method(ApiModel):
    """Exactly one of the blocks."""

    full: FullFineTune | None = None
    """Train every parameter."""

    lora: Lora | None = None
    """Train low-rank adapters."""
