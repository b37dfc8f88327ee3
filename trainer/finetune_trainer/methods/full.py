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
        """Count them in a model on the meta device, where `layer_learning_rate_decay` is checked too."""
        has_rates = block.without_fixed_defaults().layer_learning_rate_decay is not None
        if block.freeze is None and not has_rates:
            return 0
        skeleton = _skeleton(folder, task)
        _reshape(skeleton, block)
        if has_rates:
            layer_depths(skeleton)
        frozen = frozen_names(skeleton, block.freeze) if block.freeze is not None else frozenset[str]()
        _refuse_new(frozen, new)
        return sum(elements(value) for name, value in skeleton.named_parameters() if name in frozen)

    def apply(self, model: PreTrainedModel, block: FullFineTune, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model without dropped layers, and with gradients disabled for frozen parameters."""
        del task, seed
        _reshape(model, block)
        if block.freeze is None:
            return model
        frozen = frozen_names(model, block.freeze)
        _refuse_new(frozen, getattr(model, "new_parameters", ()))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return model

    def rate_factors(self, model: nn.Module, block: FullFineTune) -> dict[str, float]:
        """By layer, with `layer_learning_rate_decay`."""
        decay = block.layer_learning_rate_decay
        if decay is None or decay == 1.0:
            return {}
        return {name: decay**depth for name, depth in layer_depths(cast("PreTrainedModel", model)).items()}

    def merged(self, model: nn.Module, weights: Any, *_: Any) -> Any:
        """What was trained."""
        return model, dict(weights)


def _skeleton(folder: Path, task: TrainingTask) -> Any:
    """The model on the meta device."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        return task.model_class.from_config(AutoConfig.from_pretrained(folder))


def _reshape(model: PreTrainedModel, block: FullFineTune) -> None:
    """Drop layers. `freeze` and `layer_learning_rate_decay` count those that are left."""
    if block.pruning is not None:
        PRUNERS[block.pruning.algorithm].reshape(model, block.pruning)


def _refuse_new(frozen: frozenset[str], new: Collection[str]) -> None:
    if drawn := sorted(frozen.intersection(new)):
        raise BadConfigError(
            f"{PATH} must not freeze {drawn[0]}, which the base model lacks and which is randomly initialized",
            advice="narrow the pattern that matches it",
        )
