"""`spec.training.gradientCheckpointingEveryNLayers`: which layers of a model are recomputed in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import BadConfigError

if TYPE_CHECKING:
    from torch import nn

_FIELD = "spec.training.gradientCheckpointingEveryNLayers"


def checkpointable_layers(model: nn.Module) -> int:
    """Return the number of layers that transformers checkpoints one by one; 0 for models that do it otherwise."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def check_every_n_layers(every: int, layers: int, model: str) -> None:
    """Raise BadConfigError if a model with so many `checkpointable_layers` cannot checkpoint every n-th of them."""
    if every == 1:
        return
    if layers == 0:
        raise BadConfigError(
            f"{_FIELD} must be 1 for {model}, whose layers transformers does not checkpoint one by one, not {every}",
            advice="remove it",
        )
    if every > layers:
        raise BadConfigError(
            f"{_FIELD} must be at most {layers}, the number of layers of {model}, not {every}",
            advice=f"write {layers} or less, or write gradientCheckpointing: false to recompute no layer",
        )


def checkpoint_layers(model: Any, *, every: int) -> None:
    """Enable gradient checkpointing for every n-th layer of a model of transformers, from the first on.

    Raises BadConfigError as `check_every_n_layers`.
    """
    check_every_n_layers(every, checkpointable_layers(model), type(model).__name__)
    # Reentrant checkpointing requires inputs with gradients, but the output of a frozen embedding has none.
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
    )
