"""`spec.method.osft`."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class Osft(MethodBlock):
    """Orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097), through PEFT.

    The vectors of the largest singular values of each matrix stay as they are, and the others are trained with
    gradients that are orthogonal to them, so that less of what the base model can do is forgotten.
    """

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=tuple(ArtifactFormat),
        # The singular value decomposition needs whole matrices.
        zero_stages=(0, 1, 2),
    )

    kept_share: Annotated[float, Field(ge=0.01, le=0.99)] = 0.5
    """Share of the singular values of each matrix, the largest ones, that are not trained."""

    target_modules: (
        Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the linear layers to train, such as `q_proj`. Absent: every linear layer but the head."""
