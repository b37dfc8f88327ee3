"""Every n-th layer is recomputed, which changes neither losses nor gradients."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from finetune_api.v1alpha1 import Lora, Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.checkpointed_layers import (
    check_every_n_layers,
    checkpoint_layers,
    checkpointable_layers,
)
from finetune_trainer.tasks import TASKS

LAYERS = 5
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
FAMILIES = {
    "llama": (AutoModelForCausalLM, SIZES),
    "bert": (AutoModelForSequenceClassification, SIZES),
    "gpt2": (AutoModelForCausalLM, {"vocab_size": 64, "n_embd": 32, "n_layer": LAYERS, "n_head": 4}),
}


def model_of(family: str, *, lora: bool) -> Any:
    auto, sizes = FAMILIES[family]
    torch.manual_seed(3)
    model = auto.from_config(AutoConfig.for_model(family, pad_token_id=0, use_cache=False, **sizes))
    task = Task.CAUSAL_LM if auto is AutoModelForCausalLM else Task.SEQUENCE_CLASSIFICATION
    return METHODS["lora"].apply(model, Lora(rank=2), TASKS[task], seed=1) if lora else model


def step(family: str, every: int | None, *, lora: bool) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    """The loss, the gradients, and how often each layer was computed. `every` None: without checkpointing."""
    model = model_of(family, lora=lora)
    if every is not None:
        checkpoint_layers(model, every=every)
    computed = [0] * LAYERS
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS]

    def count(number: int) -> Any:
        def counted(*_: Any) -> None:
            computed[number] += 1

        return counted

    for number, layer in enumerate(lists[0]):
        next(layer.children()).register_forward_pre_hook(count(number))
    torch.manual_seed(7)  # dropout
    ids = torch.randint(1, 64, (2, 9))
    logits = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    loss = logits.float().log_softmax(-1)[..., 0].mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), gradients, computed


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_nth_layer_is_recomputed_with_the_same_loss_and_gradients(family: str, lora: bool) -> None:
    loss, gradients, computed = step(family, None, lora=lora)
    assert computed == [1] * LAYERS
    for every, expected in ((1, [2, 2, 2, 2, 2]), (2, [2, 1, 2, 1, 2]), (3, [2, 1, 1, 2, 1]), (5, [2, 1, 1, 1, 1])):
        again, others, computed = step(family, every, lora=lora)
        assert computed == expected
        assert torch.equal(again, loss)
        assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))


def test_the_layers_that_can_be_checkpointed_are_counted() -> None:
    assert checkpointable_layers(model_of("llama", lora=True)) == LAYERS
    assert checkpointable_layers(torch.nn.Linear(2, 2)) == 0


@pytest.mark.parametrize(
    ("every", "layers", "expected"),
    [
        (1, 0, None),
        (5, 5, None),
        (6, 5, "EveryNLayers must be at most 5, the number of layers of Model, not 6"),
        (2, 0, "EveryNLayers must be 1 for Model, whose layers transformers does not checkpoint one by one, not 2"),
    ],
)
def test_a_number_that_the_model_cannot_use_is_refused(every: int, layers: int, expected: str | None) -> None:
    if expected is None:
        check_every_n_layers(every, layers, "Model")
        return
    with pytest.raises(BadConfigError, match=expected) as caught:
        check_every_n_layers(every, layers, "Model")
    assert caught.value.advice


def test_an_attempt_with_a_number_that_does_not_fit_the_model_is_refused() -> None:
    model: PreTrainedModel = model_of("bert", lora=False)
    with pytest.raises(BadConfigError, match="at most 5"):
        checkpoint_layers(model, every=6)
