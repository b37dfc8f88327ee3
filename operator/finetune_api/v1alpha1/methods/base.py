"""Base class of the blocks of `spec.method`, and their rows in the support table."""

from dataclasses import dataclass
from typing import ClassVar

from ..base import ApiModel
from ..model import Quantization
from ..results import ArtifactFormat
from ..scope import Scope
from ..tasks import Task
from ..training import Batching


@dataclass(frozen=True)
class MethodSupport:
    """The row of one fine-tuning method in the support table (see `finetune_api.support`)."""

    formats: tuple[ArtifactFormat, ...]
    """Formats that can be exported."""
    tasks: tuple[Task, ...] | None = None
    """None: every task."""
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    gradient_checkpointing: tuple[bool, ...] = (False, True)
    """Values of `spec.training.gradientCheckpointing` that it can be trained with."""
    batchings: tuple[Batching, ...] = tuple(Batching)
    """Values of `spec.training.batching` that it can be trained with."""
    quantizations: tuple[Quantization, ...] = ()
    """Values of `spec.model.quantization` that it can be trained with: none if it trains weights of the base model's
    linear layers."""


class MethodBlock(ApiModel, scope=Scope.RUN):
    """The settings of one fine-tuning method."""

    support: ClassVar[MethodSupport]
    """What the method can be combined with."""
