"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Lora
from finetune_api.v1alpha1.methods.lora import LoraInit, LoraVariant

from ..errors import BadConfigError
from ..tasks import TrainingTask
from .adapters import AdapterMethod
from .base import METHODS, ModelSizes, ParameterCounts, Weights
from .counts import ActivationCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

_MATRIX_B = re.compile(r"\.lora_(embedding_)?B\.")
"""Part of PEFT's names of the matrices B."""
_ADAPTER = "default"
"""PEFT's name of the adapter."""
_MORE_VECTORS, _ITERATIONS = 10, 16
"""Of the randomized singular value decomposition (Halko et al. 2011, arXiv 0909.4061): the leading vectors are exact up
to rounding where the singular values fall."""


@METHODS.register
class LoraMethod(AdapterMethod[Lora]):
    """The update of an adapted matrix is the product of two small ones."""

    name = "lora"
    block = Lora
    title = "LoRA"
    default_learning_rate = 2e-4
    adapter = "A LoRA adapter"
    tags = ("lora",)

    def parameters(self, sizes: ModelSizes, block: Lora) -> ParameterCounts:
        """rank * (rows + columns) of every adapted matrix; for DoRA, at most one more for each row.

        Which axis of a matrix has its outputs depends on the architecture, so that both are counted. The rows of new
        tokens are trained as they are.
        """
        trained = (block.rank + (block.variant is LoraVariant.DORA)) * sum(map(sum, _adapted_matrices(sizes, block)))
        trained += sizes.new_rows * sizes.hidden_size
        return ParameterCounts(trained=trained, added=trained)

    def activations(self, sizes: ModelSizes, block: Lora) -> ActivationCounts:
        """DoRA keeps two results for each output of an adapted matrix, dropout the mask and the result of each input.

        For each matrix in turn, DoRA computes the update of the whole matrix (from an identity matrix), its multiple
        and its sum with the base matrix. Which axis of a matrix has its outputs depends on the architecture, but is the
        same for all, so that the larger sum is counted. With new tokens, a forward pass copies the embeddings, and the
        backward pass has a gradient of their size; the same holds for the output matrix.
        """
        matrices = _adapted_matrices(sizes, block)
        width = max((sum(axis) for axis in zip(*matrices, strict=True)), default=0)
        is_dora = block.variant is LoraVariant.DORA
        of_matrix = max((max(shape) ** 2 + 3 * prod(shape) for shape in matrices), default=0) if is_dora else 0
        of_tokens = 4 * sizes.vocabulary * sizes.hidden_size if sizes.new_rows else 0
        return ActivationCounts(
            kept=2 * width * (is_dora + (block.dropout > 0)),
            temporary=of_matrix + of_tokens,
        )

    def peft_config(self, block: Lora, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """`LoraConfig`."""
        from peft import LoraConfig

        return LoraConfig(
            r=block.rank,
            lora_alpha=block.scale,
            lora_dropout=block.dropout,
            target_modules=list(block.target_modules) if block.target_modules else "all-linear",
            # An adapter inside a module that is trained whole would be a second update of the same weights.
            exclude_modules=rf"({'|'.join(map(re.escape, trained_whole))})(\..*)?" if trained_whole else None,
            modules_to_save=list(trained_whole) or None,
            use_rslora=block.variant is LoraVariant.RSLORA,
            use_dora=block.variant is LoraVariant.DORA,
            # PEFT would compute PiSSA again in every process, with other singular vectors on another machine.
            init_lora_weights="gaussian" if block.init is LoraInit.GAUSSIAN else True,
            task_type=task.peft_type,
        )

    def peft_config_for(self, model: PreTrainedModel, block: Lora, task: TrainingTask) -> Any:
        """Also with the rows of the tokens of `spec.model.vocabulary`, which are trained as they are.

        Raises BadConfigError if a layer with such rows is named as a target, or if PEFT would tie layers that are not.
        """
        config = super().peft_config_for(model, block, task)
        if new := list(getattr(model, "new_tokens", ())):
            layers = _token_layers(model)
            targets = {name.rpartition(".")[2] for name in block.target_modules or ()}
            if named := sorted({name.rpartition(".")[2] for name in layers} & targets):
                raise BadConfigError(
                    f"spec.method.lora.targetModules must not name {', '.join(named)} with spec.model.vocabulary: the "
                    "rows of new tokens are trained as they are",
                    advice="remove it from spec.method.lora.targetModules",
                )
            config.trainable_token_indices = dict.fromkeys(layers, new)
        return config

    def note(self, folder: Path, block: Lora, task: TrainingTask) -> str:
        """That training begins with singular vectors."""
        del folder, task
        if block.init is not LoraInit.PISSA:
            return ""
        return (
            f"PiSSA: the adapter begins with the {block.rank} largest singular values of each adapted matrix; the "
            f"exported adapter has rank {2 * block.rank}"
        )

    def adapted(self, model: PreTrainedModel, block: Lora, task: TrainingTask) -> PeftModel:
        """Also checks that PiSSA can be computed. Raises BadConfigError if it cannot."""
        found = super().adapted(model, block, task)
        if block.init is LoraInit.PISSA:
            _check_pissa(found, block)
        return found

    def has_initial_weights(self, block: Lora) -> bool:
        """With PiSSA."""
        return block.init is LoraInit.PISSA

    def initial_weights(self, model: Any, block: Lora, *, seed: int) -> Weights:
        """The singular vectors of every adapted matrix, each multiplied with the root of its singular value."""
        import torch

        found: Weights = {}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for name, layer in _lora_layers(model):
                weight = _outputs_by_inputs(layer, layer.get_base_layer().weight.float())
                more = min(block.rank + _MORE_VECTORS, *weight.shape)
                left, values, right = torch.svd_lowrank(weight, q=more, niter=_ITERATIONS)
                root = (values[: block.rank] / layer.scaling[_ADAPTER]).sqrt()
                found[f"{name}.lora_A.{_ADAPTER}.weight"] = (
                    (root[:, None] * right[:, : block.rank].T).contiguous().cpu()
                )
                found[f"{name}.lora_B.{_ADAPTER}.weight"] = (left[:, : block.rank] * root).contiguous().cpu()
        return found

    def base_differences(self, model: Any, block: Lora, initial: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """The product of both initial matrices, for every adapted matrix."""
        del block
        for name, layer in _lora_layers(model):
            first, second = (initial[f"{name}.lora_{which}.{_ADAPTER}.weight"] for which in "AB")
            yield f"{name}.base_layer.weight", _outputs_by_inputs(layer, layer.scaling[_ADAPTER] * (second @ first))

    def merged(
        self,
        model: Any,
        weights: Weights,
        block: Lora,
        task: TrainingTask,
        load_base: Callable[[], PreTrainedModel],
    ) -> tuple[PreTrainedModel, Weights]:
        """A fresh base model with the adapter added to its matrices."""
        if initial := _initial_weights(model):
            weights, block = _with_difference(weights, initial), _of_twice_the_rank(block)
        return super().merged(model, weights, block, task, load_base)

    def save_adapter(self, model: Any, weights: Weights, folder: Path, *, base: str, revision: str | None) -> Weights:
        """A folder that `PeftModel.from_pretrained` loads on the unchanged base model, also with PiSSA."""
        initial = _initial_weights(model)
        if not initial:
            return super().save_adapter(model, weights, folder, base=base, revision=revision)
        configuration = model.active_peft_config
        own = configuration.r, configuration.lora_alpha
        configuration.r, configuration.lora_alpha = (2 * size for size in own)
        try:
            weights = _with_difference(weights, initial)
            return super().save_adapter(model, weights, folder, base=base, revision=revision)
        finally:
            configuration.r, configuration.lora_alpha = own

    def rate_factors(self, model: nn.Module, block: Lora) -> dict[str, float]:
        """`learningRateRatio` for the matrices B, also those of embeddings."""
        ratio = block.learning_rate_ratio or 1.0
        return {} if ratio == 1.0 else {name: ratio for name, _ in model.named_parameters() if _MATRIX_B.search(name)}


def _initial_weights(model: Any) -> Weights:
    """What the adapter began with, if the base model was changed by it; see `model.initial_weights.begin_with`."""
    found: Weights = getattr(model, "initial_weights", {})
    return found


def _token_layers(model: PreTrainedModel) -> list[str]:
    """Names of the embeddings and, if it has its own matrix, of the output layer.

    Raises BadConfigError if the output layer has its own matrix although config.json ties it to the embeddings: PEFT
    would train the rows of both as one.
    """
    names = {id(module): name for name, module in model.named_modules()}
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    layers = [names[id(inputs)]]
    if outputs is None:
        return layers
    output = names[id(outputs)]
    is_tied = outputs.weight is inputs.weight and f"{output}.weight" in model.all_tied_weights_keys
    if is_tied:
        return layers
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        raise BadConfigError(
            f"spec.model.vocabulary must be absent with spec.method.lora and this model: its config.json ties {output} "
            "to the embeddings, but its files have another matrix for it",
            advice="write tie_word_embeddings: false into the config.json of the base model, or use spec.method.full",
        )
    return [*layers, output]


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _outputs_by_inputs(layer: Any, matrix: torch.Tensor) -> torch.Tensor:
    """A matrix as the layer stores it with its axes as outputs and inputs, and the reverse: GPT-2 stores them
    transposed."""
    return matrix.T if layer.fan_in_fan_out else matrix


def _check_pissa(model: PeftModel, block: Lora) -> None:
    """Raise BadConfigError unless the adapted layers are linear, and have at least as many singular values as the
    rank."""
    for name, layer in _lora_layers(model):
        shape = getattr(layer.get_base_layer().weight, "ds_shape", layer.get_base_layer().weight.shape)
        if len(shape) != 2 or layer.lora_embedding_A:
            raise BadConfigError(
                f"spec.method.lora.init must not be PiSSA for {name.rpartition('.')[2]}, which is not a linear layer",
                advice="remove init, or the layer from spec.method.lora.targetModules",
            )
        if block.rank > min(shape):
            raise BadConfigError(
                f"spec.method.lora.rank must be at most {min(shape)} with init PiSSA, the number of singular values of "
                f"{name.rpartition('.')[2]}, not {block.rank}",
                advice="lower rank, or remove init",
            )


def _with_difference(weights: Weights, initial: Weights) -> Weights:
    """An adapter of twice the rank for the unchanged base model: the update is B*A - B0*A0, with the initial A0, B0."""
    import torch

    def widened(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in initial:
            return value
        other = initial[name].to(value.dtype)
        is_second = _MATRIX_B.search(name) is not None
        return torch.cat([value, -other], dim=1) if is_second else torch.cat([value, other])

    return {name: widened(name, value) for name, value in weights.items()}


def _of_twice_the_rank(block: Lora) -> Lora:
    """The block of the result of `_with_difference`; the update keeps its scale."""
    changed = {"rank": 2 * block.rank, "alpha": 2 * block.scale, "init": LoraInit.KAIMING}
    return block.model_copy(update=changed)


def _adapted_matrices(sizes: ModelSizes, block: Lora) -> list[tuple[int, int]]:
    return [
        shape
        for name, shape in sizes.linear
        if block.target_modules is None or any(part in block.target_modules for part in name.split("."))
    ]
