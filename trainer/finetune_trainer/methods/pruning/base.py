"""What the trainer has to know about a pruning algorithm. Importable without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from finetune_api.v1alpha1 import Pruning, PruningAlgorithm

from ...registry import Registry

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Masks = dict[str, "torch.Tensor"]
"""Name of a parameter -> which of its values are zero: bool, of its shape, on the CPU."""

PATH = "spec.method.full.pruning"


class Pruner(ABC):
    """What is removed from a model."""

    name: ClassVar[PruningAlgorithm]
    sets_zeros: ClassVar[bool]
    """Whether weights become zero, so that `masks` chooses them; otherwise `reshape` removes modules."""
    reads_inputs: ClassVar[bool] = False
    """Whether `masks` runs rows of the training split through the model."""

    @abstractmethod
    def note(self, model: PreTrainedModel, block: Pruning) -> str:
        """Say what is removed from the model, in one line.

        `model` is on the meta device and may be changed. Raises BadConfigError if the block does not fit it.
        """

    def reshape(self, model: PreTrainedModel, block: Pruning) -> None:
        """Remove modules from the model and from its configuration, in place, at any ZeRO stage.

        Raises BadConfigError if the block does not fit the model.
        """
        del model, block

    def masks(self, model: PreTrainedModel, block: Pruning, run_rows: Callable[[], None]) -> Masks:
        """Choose the weights that become zero; the model is complete on one process and is not changed.

        `run_rows` runs the rows of the calibration through the model.
        """
        del model, block, run_rows
        return {}


PRUNERS: Registry[Pruner] = Registry("finetune_trainer.methods.pruning", f"{PATH}.algorithm")
"""Algorithm by name."""
