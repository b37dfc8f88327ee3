"""The phases of `spec.method.full.gradualUnfreezing`: which parameters are trained since which phase."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from finetune_api.v1alpha1 import GradualUnfreezing

from ..errors import BadConfigError
from .layers import layer_depths, transformer_layers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

PATH = "spec.method.full.gradualUnfreezing"


def first_phases(model: PreTrainedModel, block: GradualUnfreezing, frozen: Collection[str]) -> dict[str, int]:
    """Return the phase, from 0, since which each parameter is trained; `frozen` ones never are, and are absent.

    The phases count only layers that are not frozen as a whole, so that every phase adds parameters. Raises
    BadConfigError for a block that does not fit the model.
    """
    depths = {name: depth for name, depth in layer_depths(model, PATH).items() if name not in frozen}
    _, modules = cast("tuple[str, nn.ModuleList]", transformer_layers(model))
    embeddings = len(modules) + 1
    layers = sorted({depth for depth in depths.values() if 0 < depth < embeddings})
    if block.start_layers >= len(layers):
        raise _too_many(model, block.start_layers, len(layers))
    phase_of = {0: 0} | {depth: _phase(index, block) for index, depth in enumerate(layers)}
    phase_of[embeddings] = max(phase_of.values())
    found = {name: phase_of[depth] for name, depth in depths.items()}
    if 0 not in found.values():
        raise BadConfigError(
            f"{PATH}.startLayers must be at least 1, because nothing that {type(model).__name__} uses after its last "
            "layer can be trained alone: its output matrix is tied to the embeddings, or frozen",
            advice="write startLayers: 1",
        )
    return found


def describe_phases(phases: int, steps: int, total: int) -> str:
    """Return a note about a training of `total` steps with this number of phases of `steps` steps."""
    text = f"gradual unfreezing in {phases} phases of {steps} {'step' if steps == 1 else 'steps'}"
    last = (phases - 1) * steps + 1
    if last <= total:
        return f"{text}; the last one starts at step {last} of {total}"
    reached = phase_at(total - 1, steps, phases) + 1
    return (
        f"{text}: the training ends at step {total}, in phase {reached}, so that the layers of later phases and the "
        f"embeddings keep the values of the base model; it would need at least {last} steps for all phases"
    )


def phase_at(step: int, steps: int, phases: int) -> int:
    """Return the phase, from 0, of the optimizer step that follows `step` completed ones."""
    return min(step // steps, phases - 1)


def _phase(index: int, block: GradualUnfreezing) -> int:
    """Return the phase of the layer with this index, counted from the last layer."""
    return 0 if index < block.start_layers else 1 + (index - block.start_layers) // block.layers_per_phase


def _too_many(model: PreTrainedModel, start_layers: int, count: int) -> BadConfigError:
    if not count:
        return BadConfigError(
            f"{PATH} must be absent, because spec.method.full.freeze freezes all layers of {type(model).__name__}",
            advice="remove it, or freeze fewer layers",
        )
    return BadConfigError(
        f"{PATH}.startLayers must be less than {count}, the number of layers of {type(model).__name__} that are not "
        f"frozen, not {start_layers}",
        advice=f"write at most {count - 1}, or remove gradualUnfreezing to train all layers from the first step",
    )
