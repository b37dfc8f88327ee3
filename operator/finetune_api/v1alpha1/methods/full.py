"""`spec.method.full`."""

from typing import ClassVar

from ..results import ArtifactFormat
from .base import MethodBlock, MethodSupport


class FullFineTune(MethodBlock):
    """Every parameter is trained."""

    support: ClassVar[MethodSupport] = MethodSupport(formats=(ArtifactFormat.MERGED,))
