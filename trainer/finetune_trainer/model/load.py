"""The base model with the head of the task, the same values in every process and in the baseline."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from finetune_api.v1alpha1 import Dtype, Task

from ..errors import ModelUnusableError
from .tokenizer import load_tokenizer

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
}

_MODEL_CLASSES: dict[Task, Any] = {
    Task.SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    Task.CAUSAL_LM: AutoModelForCausalLM,
}


def load_model(folder: Path, *, task: Task, labels: tuple[str, ...], dtype: Dtype, seed: int) -> PreTrainedModel:
    """Load a model folder in Hugging Face layout. `labels` names the classes in the order of their ids.

    Parameters that the folder does not have (a new head) are drawn from `seed` by name, so neither the ZeRO stage nor
    what ran before changes them. Raises ModelUnusableError for a folder that holds no such model.
    """
    overrides: dict[str, Any] = {}
    if task is Task.SEQUENCE_CLASSIFICATION:
        overrides = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
            # A decoder finds a row's last real token by it.
            "pad_token_id": load_tokenizer(folder).pad_token_id,
        }
    try:
        config = AutoConfig.from_pretrained(folder, **overrides)
        model: PreTrainedModel
        model, found = _MODEL_CLASSES[task].from_pretrained(
            folder, config=config, dtype=TORCH_DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusableError(
            f"{folder} cannot be loaded for {task}: {error}",
            advice="spec.model.uri has to point to a folder in Hugging Face layout with config.json, a tokenizer and "
            "safetensors weights of an architecture that knows this task",
        ) from error
    new = set(found["missing_keys"]) | {entry[0] for entry in found["mismatched_keys"]}
    if task is Task.CAUSAL_LM and new:
        raise ModelUnusableError(
            f"{folder} lacks weights of a language model: {', '.join(sorted(new)[:4])}",
            advice="use a base model with a language-modelling head, or set spec.model.task to SequenceClassification",
        )
    _initialise(model, new, seed=seed)
    # An adapter has to bring them: see adapters.with_adapter.
    vars(model)["new_parameters"] = frozenset(new)
    return model


def _initialise(model: PreTrainedModel, names: Iterable[str], *, seed: int) -> None:
    """Draw the named parameters: matrices normal with the model's own deviation, biases 0, scales 1.

    One generator in the order of the names; under ZeRO-3 rank 0 draws and the others receive.
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


def _assign(parameter: nn.Parameter, values: torch.Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(values)
    else:
        parameter.data.copy_(values)
