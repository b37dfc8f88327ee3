"""Low-rank adapters, through PEFT."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from finetune_api.v1alpha1 import Lora, Task

from ..errors import BadConfigError
from ..tasks import TASKS

_PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's own modules."""


def lora_config(lora: Lora, task: Task, trained_whole: tuple[str, ...] = ()) -> Any:
    """PEFT's configuration. `trained_whole` names the modules that get no adapter but are trained themselves."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        # An adapter inside a module that is trained whole would be a second update of the same weights.
        exclude_modules=rf"({'|'.join(map(re.escape, trained_whole))})(\..*)?" if trained_whole else None,
        modules_to_save=list(trained_whole) or None,
        task_type=TaskType[TASKS[task].peft_type],
    )


def with_adapter(model: PreTrainedModel, lora: Lora, task: Task) -> PeftModel:
    """The model with adapters, its own parameters frozen. Draws the adapters from torch's current seed.

    A classifier's head is trained whole: it may be new, and it is small. So is any other module that the base model's
    files lack: whoever loads the adapter would draw other values for it.

    Raises BadConfigError where a target is not a layer of the model, or is a matrix that two layers share.
    """
    try:
        with warnings.catch_warnings():
            # PEFT only warns where the adapter touches a shared matrix; below that is an error.
            warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
            # GPT-2's layers store their matrices transposed; PEFT finds out for each layer and mentions it.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            adapted: PeftModel = get_peft_model(model, lora_config(lora, task, _trained_whole(model, task)))
    except ValueError as error:
        known = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})
        raise BadConfigError(
            f"spec.method.lora cannot be applied to {type(model).__name__}: {error}",
            advice=f"linear layers of this model are {', '.join(known)}; leave targets out to adapt all but the head",
        ) from error
    _check_shared(adapted, lora)
    return adapted


def check_adapter(folder: Path, lora: Lora, task: Task) -> None:
    """Raise BadConfigError where `with_adapter` would, without loading weights: the model is built on the meta device.

    A checkpoint that holds two different matrices although its config.json ties them passes here; transformers does
    not tie those, and `with_adapter` sees the loaded model.
    """
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        skeleton: PreTrainedModel = TASKS[task].model_class.from_config(config)
        for target in list(skeleton.all_tied_weights_keys):
            if _holds(folder, target):
                skeleton.all_tied_weights_keys.pop(target)
        with_adapter(skeleton, lora, task)


def _holds(folder: Path, name: str) -> bool:
    """Whether a weight file has a tensor of this name."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            if name in file.keys():  # noqa: SIM118
                return True
    return False


def _trained_whole(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    """Full names of the modules without an adapter: the head, and what was drawn because the base model lacks it."""
    if not TASKS[task].may_draw_head:
        return ()
    body = model.base_model_prefix
    if not isinstance(getattr(model, body, None), nn.Module):
        return ()  # PEFT knows the usual names of heads
    heads = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    drawn = {name.rpartition(".")[0] for name in getattr(model, "new_parameters", ())}
    return tuple(sorted([*heads, *(name for name in drawn if name.startswith(f"{body}."))]))


def _check_shared(adapted: PeftModel, lora: Lora) -> None:
    """Refuse adapters on a matrix that two layers share.

    Merging adds the update to the one matrix, so the other layer would change too; base and adapter leave it as it is.
    """
    model = adapted.get_base_model()
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {first: second for pair in tied.items() for first, second in (pair, pair[::-1])}
    for name, module in adapted.named_modules():
        own = name.removeprefix(_PEFT_PREFIX)
        partner = shared.get(f"{own}.weight")
        if partner is None or not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        layer, other = (_last(own), _last(partner.rpartition(".")[0]))
        raise BadConfigError(
            f"spec.method.lora.targets must not name {layer}: in {type(model).__name__} with tied embeddings "
            f"{layer} shares its matrix with {other}, so a merged model would not be base model plus adapter",
            advice=_without(lora, layer, other),
        )


def _without(lora: Lora, *layers: str) -> str:
    left = [target for target in lora.targets or () if _last(target) not in layers]
    if left:
        return f"write spec.method.lora.targets: [{', '.join(left)}], or use a base model whose embeddings are not tied"
    return "remove spec.method.lora.targets to adapt every linear layer but the head, or use spec.method.full"


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _is_linear(module: nn.Module) -> bool:
    return type(module).__name__ in {"Linear", "Conv1D"}
