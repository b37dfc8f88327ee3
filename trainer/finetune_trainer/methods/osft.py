"""Orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1.methods.osft import Osft

from ..errors import BadConfigError
from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, ModelSizes, ParameterCounts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@METHODS.register
class OsftMethod(AdapterMethod[Osft]):
    """The small singular values of a matrix and their vectors are trained.

    PEFT keeps the base matrix and adds the trained product minus its initial value, so the update of a matrix does not
    depend on the signs that the decomposition chooses.
    """

    name = "osft"
    block = Osft
    title = "orthogonal subspace fine-tuning"
    default_learning_rate = 2e-5
    adapter = "An OSF adapter"
    saves_memory = False
    tags = ("osf",)

    def parameters(self, sizes: ModelSizes, block: Osft) -> ParameterCounts:
        """The trained vectors and values; their initial ones and, of the longer axis, the kept vectors are added too.

        Without targetModules, of every matrix.
        """
        trained = kept = 0
        for name, shape in sizes.linear:
            if block.target_modules is None or any(part in block.target_modules for part in name.split(".")):
                large = int(min(shape) * block.kept_share)
                if large < 1:
                    continue
                trained += (min(shape) - large) * (sum(shape) + 1)
                kept += large * max(shape)
        return ParameterCounts(trained=trained, added=2 * trained + kept)

    def peft_config(self, block: Osft, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`OSFConfig`, without the layers."""
        from peft import OSFConfig

        return OSFConfig(
            effective_rank=block.kept_share, modules_to_save=list(trained_whole) or None, task_type=task.peft_type
        )

    def peft_config_for(self, model: PreTrainedModel, block: Osft, task: TrainingTask) -> Any:
        """With the linear layers that are not trained whole."""
        config = super().peft_config_for(model, block, task)
        whole = tuple(f"{name}." for name in config.modules_to_save or ())
        output = model.get_output_embeddings()
        wanted = {
            name: min(module.weight.shape)
            for name, module in model.named_modules()
            if _is_linear(module) and module is not output and not f"{name}.".startswith(whole)
            if block.target_modules is None or name.rpartition(".")[2] in block.target_modules
        }
        # PEFT refuses to keep no singular value, for example of the gate of a shared expert, which has one output.
        narrow = [name for name, size in wanted.items() if int(size * block.kept_share) < 1]
        if narrow and block.target_modules is not None:
            smallest = 1 / min(wanted.values())
            raise BadConfigError(
                f"spec.method.osft.keptShare must be at least {smallest:.2g} to keep a singular value of {narrow[0]}, "
                f"not {block.kept_share:g}",
                advice="raise keptShare, or remove this layer from spec.method.osft.targetModules",
            )
        config.target_modules = [name for name in wanted if name not in narrow]
        if not config.target_modules:
            raise BadConfigError(
                f"spec.method.osft cannot be applied to {type(model).__name__}: it has no linear layers "
                + ("" if block.target_modules is None else f"with the names {', '.join(block.target_modules)}"),
                advice=self.advice(model, block),
            )
        return config


def _is_linear(module: nn.Module) -> bool:
    """PEFT decomposes only these; GPT-2's layers are of another class."""
    return type(module).__name__ == "Linear"
