"""`spec.method.full.pruning`."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from ..base import ApiModel
from ..scope import Scope


class PruningAlgorithm(StrEnum):
    """How the weights to remove are chosen."""

    MAGNITUDE = "Magnitude"
    WANDA = "Wanda"
    DROP_LAYERS = "DropLayers"


class Pruning(ApiModel, scope=Scope.RUN):
    """Weights of the base model that are removed before the training, which adapts the others."""

    algorithm: PruningAlgorithm
    """Magnitude sets the smallest weights of each linear layer to zero. Wanda (Sun et al. 2023, arXiv 2306.11695)
    multiplies them with the norms of their inputs, measured on 128 training examples, and sets the smallest of each
    output to zero. DropLayers removes whole transformer layers. Zeros make a compressed model smaller, but no model
    faster; fewer layers make it smaller and faster."""

    sparsity: Annotated[float, Field(ge=0.01, le=0.95)] | None = None
    """Share of the weights of each linear layer within the transformer layers that become zero, and stay zero during
    the training. Embeddings, biases, norms and the head are not pruned. Required for Magnitude and Wanda, absent for
    DropLayers."""

    layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of transformer layers to drop: those before the last one, which is kept. Required for DropLayers, absent
    for the others."""
