"""`spec.method.full`."""

from typing import Annotated, ClassVar, Self

from pydantic import Field

from ..base import ApiModel
from ..results import ArtifactFormat
from ..scope import Scope
from .base import MethodBlock, MethodSupport
from .pruning import Pruning

MAX_PATTERNS = 64


class Freeze(ApiModel, scope=Scope.RUN):
    """Parameters that keep the values of the base model. At least one of the fields."""

    embeddings: bool = False
    """All embedding matrices: of tokens and, where the model has them, of positions and token types. An output matrix
    that is tied to the embeddings is frozen too."""

    first_layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of transformer layers to freeze, counted from the input."""

    patterns: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=MAX_PATTERNS)
    ] = ()
    """Globs that match complete names of parameters, such as `*.bias` or `model.layers.[0-3].*`: `*` matches any
    characters, `?` one, and `[...]` one of some. Each pattern must match a parameter."""


class GradualUnfreezing(ApiModel, scope=Scope.RUN):
    """Phases of equal length, in each of which more layers are trained. Exactly one of `epochsPerPhase` and
    `stepsPerPhase`."""

    epochs_per_phase: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Length of a phase in epochs."""

    steps_per_phase: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Length of a phase in optimizer steps."""

    layers_per_phase: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of transformer layers that are added in each phase, from the last layer to the first. The last phase also
    adds the embeddings, and lasts until the end of the training."""

    start_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of transformer layers that are trained in the first phase in addition to the head, counted from the last
    layer."""

    def phase_steps(self, steps_per_epoch: int) -> int:
        """Return the length of a phase in optimizer steps."""
        return self.steps_per_phase or (self.epochs_per_phase or 1) * steps_per_epoch


class FullFineTune(MethodBlock):
    """Every parameter is trained, except those in `freeze`."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=tuple(one for one in ArtifactFormat if one is not ArtifactFormat.ADAPTER)
    )

    freeze: Freeze | None = None
    """Parameters that are not trained. Absent: none."""

    pruning: Pruning | None = None
    """Weights or layers of the base model that are removed before the training. Absent: none."""

    layer_learning_rate_decay: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Factor of the learning rate from each transformer layer to the one before it. The head is trained with
    `training.learningRate`, the last layer with this share of it, and the embeddings with the lowest rate. Absent, or
    1: the same rate for all."""

    gradual_unfreezing: GradualUnfreezing | None = None
    """Trains the head first, and adds layers from the last to the first while the training runs. Parameters in `freeze`
    are never trained. Absent: all parameters are trained from the first step."""

    def without_fixed_defaults(self) -> Self:
        """Without `layer_learning_rate_decay` if it has no effect."""
        is_default = self.layer_learning_rate_decay == 1.0
        return self.model_copy(update={"layer_learning_rate_decay": None}) if is_default else self
