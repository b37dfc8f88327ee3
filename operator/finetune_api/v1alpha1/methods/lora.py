"""`spec.method.lora`."""

from typing import Annotated, ClassVar, Self

from pydantic import Field

from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class Lora(MethodBlock):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through PEFT; the base model stays frozen."""

    support: ClassVar[MethodSupport] = MethodSupport(formats=(ArtifactFormat.MERGED, ArtifactFormat.ADAPTER))

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

    @property
    def scale(self) -> int:
        """`alpha`, or twice the rank where it is absent."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def without_fixed_defaults(self) -> Self:
        """Without `alpha` where it is twice the rank."""
        return self.model_copy(update={"alpha": None}) if self.alpha == 2 * self.rank else self
