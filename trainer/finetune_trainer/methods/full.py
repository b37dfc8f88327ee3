"""Full fine-tuning: every parameter is trained, except those that the block freezes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetune_api.v1alpha1 import FullFineTune

from ..errors import BadConfigError
from ..tasks import TrainingTask
from .base import METHODS, FineTuningMethod, ModelSizes, ParameterCounts
from .counts import ActivationCounts
from .freezing import PATH, elements, frozen_names
from .layers import layer_depths
from .pruning import PRUNERS
from .unfreezing import describe_phases, first_phases

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@METHODS.register
class Full(FineTuningMethod[FullFineTune]):
    """The model itself."""

    name = "full"
    block = FullFineTune
    title = "full fine-tune"
    is_adapter = False

    def parameters(self, sizes: ModelSizes, block: FullFineTune) -> ParameterCounts:
        """All but the frozen ones."""
        frozen = 0 if block.freeze is None else sizes.frozen
        return ParameterCounts(trained=max(0, sizes.parameters - frozen), added=0)

    def activations(self, sizes: ModelSizes, block: FullFineTune) -> ActivationCounts:
        """The masks of pruned weights."""
        if block.pruning is None or block.pruning.sparsity is None:
            return ActivationCounts()
        return ActivationCounts(flags=sum(rows * columns for _, (rows, columns) in sizes.linear))

    def note(self, folder: Path, block: FullFineTune, task: TrainingTask) -> str:
        """What `pruning` removes, which is checked."""
        if block.pruning is None:
            return ""
        return PRUNERS[block.pruning.algorithm].note(_skeleton(folder, task), block.pruning)

    def frozen_parameters(
        self, folder: Path, block: FullFineTune, task: TrainingTask, new: Collection[str] = ()
    ) -> int:
        """Count them in a model on the meta device, where `layer_learning_rate_decay` and `gradual_unfreezing` are
        checked too."""
        has_rates = block.without_fixed_defaults().layer_learning_rate_decay is not None
        if block.freeze is None and block.gradual_unfreezing is None and not has_rates:
            return 0
        skeleton = _skeleton(folder, task)
        _reshape(skeleton, block)
        if has_rates:
            layer_depths(skeleton)
        frozen = _frozen(skeleton, block)
        _refuse_new(frozen, new)
        if block.gradual_unfreezing is not None:
            first_phases(skeleton, block.gradual_unfreezing, frozen)
        return sum(elements(value) for name, value in skeleton.named_parameters() if name in frozen)

    def apply(self, model: PreTrainedModel, block: FullFineTune, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model without dropped layers, and with gradients disabled for frozen parameters."""
        del task, seed
        _reshape(model, block)
        if block.freeze is not None:
            frozen = frozen_names(model, block.freeze)
            _refuse_new(frozen, getattr(model, "new_parameters", ()))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)
        result: nn.Module = model
        return result

    def rate_factors(self, model: nn.Module, block: FullFineTune) -> dict[str, float]:
        """By layer, with `layer_learning_rate_decay`."""
        decay = block.layer_learning_rate_decay
        if decay is None or decay == 1.0:
            return {}
        return {name: decay**depth for name, depth in layer_depths(cast("PreTrainedModel", model)).items()}

    def first_phases(self, model: nn.Module, block: FullFineTune) -> dict[str, int]:
        """By layer, with `gradual_unfreezing`."""
        if block.gradual_unfreezing is None:
            return {}
        trained = cast("PreTrainedModel", model)
        return first_phases(trained, block.gradual_unfreezing, _frozen(trained, block))

    def phase_steps(self, block: FullFineTune, steps_per_epoch: int) -> int:
        """As `gradual_unfreezing` says."""
        assert block.gradual_unfreezing is not None
        return block.gradual_unfreezing.phase_steps(steps_per_epoch)

    def phase_note(
        self, folder: Path, block: FullFineTune, task: TrainingTask, *, steps_per_epoch: int, total_steps: int
    ) -> str:
        """Describe the phases of `gradual_unfreezing`, from a model on the meta device."""
        if block.gradual_unfreezing is None:
            return ""
        skeleton = _skeleton(folder, task)
        _reshape(skeleton, block)
        phases = self.first_phases(skeleton, block)
        return describe_phases(max(phases.values()) + 1, self.phase_steps(block, steps_per_epoch), total_steps)

    def merged(self, model: nn.Module, weights: Any, *_: Any) -> Any:
        """What was trained."""
        return model, dict(weights)


def _skeleton(folder: Path, task: TrainingTask) -> PreTrainedModel:
    """Return the model of a folder on the meta device, without its weights."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        return cast("PreTrainedModel", task.model_class.from_config(AutoConfig.from_pretrained(folder)))


def _reshape(model: PreTrainedModel, block: FullFineTune) -> None:
    """Drop layers. `freeze` and `layer_learning_rate_decay` count those that are left."""
    if block.pruning is not None:
        PRUNERS[block.pruning.algorithm].reshape(model, block.pruning)


def _frozen(model: PreTrainedModel, block: FullFineTune) -> frozenset[str]:
    return frozenset() if block.freeze is None else frozen_names(model, block.freeze)


def _refuse_new(frozen: frozenset[str], new: Collection[str]) -> None:
    if drawn := sorted(frozen.intersection(new)):
        raise BadConfigError(
            f"{PATH} must not freeze {drawn[0]}, which the base model lacks and which is randomly initialized",
            advice="narrow the pattern that matches it",
        )
