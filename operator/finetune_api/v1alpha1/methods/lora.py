"""`spec.method.lora`."""

from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import Field

from ..model import Quantization
from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class LoraVariant(StrEnum):
    """How the update of a matrix is computed."""

    LORA = "LoRA"
    RSLORA = "RsLoRA"
    DORA = "DoRA"


class LoraInit(StrEnum):
    """What the matrices A and B begin with."""

    KAIMING = "Kaiming"
    GAUSSIAN = "Gaussian"
    PISSA = "PiSSA"


class Lora(MethodBlock):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through PEFT; the base model stays frozen."""

    support: ClassVar[MethodSupport] = MethodSupport(formats=tuple(ArtifactFormat), quantizations=tuple(Quantization))

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank r of the update B*A."""

    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scale of the update is alpha / rank, unless `variant` says otherwise. Absent: twice the rank."""

    dropout: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Dropout before the adapter's first matrix."""

    target_modules: (
        Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the linear layers to adapt, such as `q_proj`. Absent: every linear layer but the head."""

    variant: LoraVariant = LoraVariant.LORA
    """RsLoRA scales the update by alpha / sqrt(rank), which keeps high ranks stable (Kalajdzievski 2023, arXiv
    2312.03732). DoRA also trains the length of each row of the updated matrix (Liu et al. 2024, arXiv 2402.09353):
    often better at low ranks, and slower."""

    init: LoraInit = LoraInit.KAIMING
    """Kaiming and Gaussian draw A at random, from a uniform and from a normal distribution, and begin with B = 0. PiSSA
    begins with the largest singular values and vectors of each matrix, whose rest stays frozen (Meng et al. 2024, arXiv
    2404.02948): it often learns faster. The exported adapter then has twice the rank. Only with variant LoRA, and
    without `model.quantization`."""

    learning_rate_ratio: Annotated[float, Field(ge=1.0, le=1024.0)] | None = None
    """Learning rate of the matrices B divided by `training.learningRate`, which the matrices A keep (LoRA+; Hayou et
    al. 2024, arXiv 2402.12354, which recommends 16 and a lower learning rate than without). Absent: 1."""

    @property
    def scale(self) -> int:
        """`alpha`, or twice the rank where it is absent."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def without_fixed_defaults(self) -> Self:
        """Without `alpha` where it is twice the rank, and without a `learning_rate_ratio` of 1."""
        alpha = None if self.alpha == 2 * self.rank else self.alpha
        ratio = None if self.learning_rate_ratio == 1.0 else self.learning_rate_ratio
        return self.model_copy(update={"alpha": alpha, "learning_rate_ratio": ratio})
