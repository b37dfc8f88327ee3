"""Loads the base model with the head of the task, with the same values in every process and in the baseline."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune_api.v1alpha1 import Dtype, Task

from ..errors import ModelUnusableError
from ..new_tokens import new_token_ids
from .quantize import BaseQuantization, fake_quantize_layers, loading_options, patch_quantized_layers, quantizable
from .weights import plan_weights

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
}


def load_model(
    folder: Path,
    *,
    task: Task,
    labels: tuple[str, ...],
    dtype: Dtype,
    seed: int,
    quantization: BaseQuantization | None = None,
) -> PreTrainedModel:
    """Load a model folder in Hugging Face layout. `labels` names the classes in the order of their ids.

    If the labels of a stored classifier are the same, its rows are reordered to match `labels`. Parameters that the
    folder does not have (a new head) are initialized from `seed` in the order of their names, independent of the ZeRO
    stage and of earlier random numbers. With `quantization`, the linear layers of the base model are quantized, and the
    model is on the device of `quantization`. Raises ModelUnusableError if the folder has no such model.
    """
    plan = plan_weights(folder, str(folder), task, labels)
    matrices = {} if quantization is None else quantizable(quantization.kind, plan.matrices)
    is_quantized = quantization is not None and not quantization.dequantized
    options: dict[str, Any] = {}
    if quantization is not None and is_quantized:
        others = (*plan.unquantized, *(name for name in plan.matrices if name not in matrices))
        options = loading_options(quantization, TORCH_DTYPES[dtype], others)
    try:
        model: Any
        found: dict[str, Any]
        model, found = plan.model_class.from_pretrained(
            folder,
            config=plan.config,
            dtype=TORCH_DTYPES[dtype],
            output_loading_info=True,
            # Under ZeRO-3, transformers raises an error for a head of another size unless it has another name.
            ignore_mismatched_sizes=True,
            key_mapping={f"^{re.escape(name)}$": f"replaced.{name}" for name in plan.misshapen} or None,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusableError(
            f"{folder} cannot be loaded for {task}: {error}", advice="copy the model again; its files may be damaged"
        ) from error
    unplanned = (set(found["missing_keys"]) | {entry[0] for entry in found["mismatched_keys"]}) - set(plan.new)
    if unplanned:
        raise ModelUnusableError(
            f"{folder}: {len(unplanned)} weights were not found when the model was loaded: {sorted(unplanned)[:4]}",
            advice="copy the model again; its files may be damaged",
        )
    # Under ZeRO-3, transformers keeps all renamings that it knows and reverts them when the model is saved:
    # LayerNorm.weight would be stored as LayerNorm.gamma.
    model._weight_conversions = [kept for kept in model._weight_conversions if kept.was_used()]
    if quantization is not None:
        (patch_quantized_layers if is_quantized else fake_quantize_layers)(model, quantization, matrices)
    _initialize(model, plan.new, seed=seed)
    if plan.labels.order:
        _reorder(model, plan.label_axes, plan.labels.order)
    # An adapter must contain them.
    model.new_parameters = frozenset(plan.new)
    model.new_tokens = new_token_ids(folder)
    loaded: PreTrainedModel = model
    return loaded


def _initialize(model: PreTrainedModel, names: Iterable[str], *, seed: int) -> None:
    """Initialize the named parameters: matrices normal with the model's standard deviation, biases 0, scales 1.

    Uses one generator in the order of the names. Under ZeRO-3, rank 0 generates the values and broadcasts them.
    """
    generator = torch.Generator().manual_seed(seed)
    text_config = model.config.get_text_config()
    deviation = getattr(text_config, "initializer_range", None) or 0.02
    parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    for name in sorted(set(names) & set(parameters)):
        parameter = parameters[name]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if len(shape) > 1:
            values = torch.randn(shape, generator=generator) * deviation
        else:
            values = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        _assign(parameter, values)


def _reorder(model: PreTrainedModel, axes: Mapping[str, int], order: tuple[int, ...]) -> None:
    """Reorder the rows of all parameters that have one row per label: row i becomes the former row `order[i]`."""
    parameters = dict(model.named_parameters())
    for name, axis in axes.items():
        with writable(parameters[name]) as (values, is_writer):
            if is_writer:
                values.copy_(values.index_select(axis, torch.tensor(order, device=values.device)))


def _assign(parameter: nn.Parameter, values: torch.Tensor) -> None:
    with writable(parameter) as (data, is_writer):
        if is_writer:
            data.copy_(values)


@contextmanager
def writable(parameter: nn.Parameter) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yield the unpartitioned values and whether this process writes them: under ZeRO-3, only rank 0 does."""
    if not hasattr(parameter, "ds_id"):
        yield parameter.data, True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield parameter.data, torch.distributed.get_rank() == 0
