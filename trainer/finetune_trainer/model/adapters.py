"""Low-rank adapters, through PEFT."""

from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from finetune_api.v1alpha1 import Lora, Task

from ..errors import BadConfigError

_TASK_TYPES = {Task.SEQUENCE_CLASSIFICATION: TaskType.SEQ_CLS, Task.CAUSAL_LM: TaskType.CAUSAL_LM}


def lora_config(lora: Lora, task: Task) -> Any:
    """PEFT's configuration. A classifier's head is trained whole: it may be new, and it is small."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        task_type=_TASK_TYPES[task],
    )


def with_adapter(model: PreTrainedModel, lora: Lora, task: Task) -> PeftModel:
    """The model with adapters, its own parameters frozen. Draws the adapters from torch's current seed.

    Raises BadConfigError where a target is not a layer of the model.
    """
    try:
        adapted: PeftModel = get_peft_model(model, lora_config(lora, task))
    except ValueError as error:
        known = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})
        raise BadConfigError(
            f"spec.method.lora cannot be applied to {type(model).__name__}: {error}",
            advice=f"linear layers of this model are {', '.join(known)}; leave targets out to adapt all but the head",
        ) from error
    return adapted


def _is_linear(module: object) -> bool:
    return type(module).__name__ in {"Linear", "Conv1D"}
