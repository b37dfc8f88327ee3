"""`spec.method.ia3`."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..model import Quantization
from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class Ia3(MethodBlock):
    """Learned factors for the activations of some layers (IA3; Liu et al. 2022, arXiv 2205.05638), through PEFT; the
    base model stays frozen."""

    support: ClassVar[MethodSupport] = MethodSupport(formats=tuple(ArtifactFormat), quantizations=tuple(Quantization))

    target_modules: (
        Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the linear layers whose outputs are scaled, such as `k_proj`. Absent: the layers that PEFT lists for the
    model's architecture, in most the keys, the values and the inputs of the last feed-forward layer."""
