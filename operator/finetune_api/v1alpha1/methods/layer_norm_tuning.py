"""`spec.method.layerNormTuning`."""

from typing import ClassVar

from ..model import Quantization
from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class LayerNormTuning(MethodBlock):
    """The weights of the normalization layers are trained (Zhao et al. 2023, arXiv 2312.11420), through PEFT; all
    others stay frozen."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=tuple(ArtifactFormat),
        # PEFT copies the layers, which parameters that are partitioned between processes do not allow.
        zero_stages=(0, 1, 2),
        quantizations=tuple(Quantization),
    )
