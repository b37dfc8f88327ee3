"""Memory that a method or an optimizer uses beyond that of the base model, measured and compared with the estimate."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.v1alpha1 import Lora, OptimizerName, Task
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.counts import ActivationCounts
from finetune_trainer.model import activations
from finetune_trainer.model.estimate import STEP_BYTES
from finetune_trainer.model.inspect import ModelFacts
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.engine import make_optimizer
from peak_memory import PeakMemory
from saved_tensors import saved_bytes
from train_configs import train_config

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=224,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
TOKENS = 256
LORA: Any = METHODS["lora"]


def adapted(block: Lora) -> tuple[Any, ModelFacts]:
    model = LlamaForCausalLM(CONFIG)
    model.config.use_cache = False
    shapes = {name: value.shape for name, value in model.named_parameters() if "proj" in name}
    facts = ModelFacts(
        model_type="llama",
        is_decoder=True,
        is_encoder_decoder=False,
        parameters=0,
        largest_parameter=0,
        linear=tuple((name, (shape[0], shape[1])) for name, shape in shapes.items()),
        hidden_size=64,
        layers=2,
        vocabulary=32,
        positions=None,
    )
    return LORA.apply(model, block, TASKS[Task.CAUSAL_LM], seed=1).train(), facts


def saved_values(block: Lora) -> int:
    """Values that a forward pass keeps for the backward pass, besides parameters."""
    model, _ = adapted(block)
    return saved_bytes(model, input_ids=torch.ones((1, TOKENS), dtype=torch.long)) // 4


@pytest.mark.parametrize(
    ("block", "most"),
    [
        ({"variant": "DoRA"}, 1.01),
        ({"dropout": 0.1}, 2.0),  # without dropout, layers that read the same tensor keep it once
        ({"variant": "DoRA", "dropout": 0.1}, 1.5),
        ({"variant": "DoRA", "target_modules": ("down_proj", "o_proj")}, 2.5),  # more inputs than outputs
    ],
    ids=str,
)
def test_the_estimate_has_the_values_that_an_adapter_keeps(block: dict[str, Any], most: float) -> None:
    whole = Lora.model_validate({"rank": 8, **block})
    plain = whole.model_copy(update={"variant": Lora().variant, "dropout": 0.0})
    measured = saved_values(whole) - saved_values(plain)
    estimated = TOKENS * LORA.activations(adapted(whole)[1], whole).kept
    assert 0.99 * measured <= estimated <= most * measured
    assert LORA.activations(adapted(plain)[1], plain) == ActivationCounts()


def test_the_estimate_has_the_temporary_tensors_of_dora() -> None:
    block = Lora.model_validate({"rank": 1, "variant": "DoRA"})
    model, facts = adapted(block)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    with PeakMemory() as memory:
        layer(torch.zeros((1, 1, 224)))
    assert 0.9 * memory.peak / 4 <= LORA.activations(facts, block).temporary <= 1.25 * memory.peak / 4


@pytest.mark.parametrize("name", OptimizerName)
def test_the_estimate_has_the_temporary_tensors_of_the_optimizer(name: OptimizerName) -> None:
    model = torch.nn.Linear(1000, 100, bias=False)
    optimizer = make_optimizer(model, train_config(training={"optimizer": {"name": name}}).spec.training)
    peaks = []
    for _ in range(8):
        model.weight.grad = torch.ones_like(model.weight)
        with PeakMemory() as memory:
            optimizer.step()
        peaks.append(memory.peak)
    assert max(peaks[1:]) == pytest.approx(STEP_BYTES[name] * model.weight.numel(), abs=1000)


def peak_of_step(vocabulary: int, layers: int, dtype: torch.dtype, *, recomputed: bool) -> float:
    """Peak of a forward and backward pass per token, without the gradients of parameters, which are frozen."""
    config = LlamaConfig.from_dict(
        CONFIG.to_dict() | {"vocab_size": vocabulary, "num_hidden_layers": layers, "use_cache": False}
    )
    model: Any = LlamaForCausalLM._from_config(config, dtype=dtype).train().requires_grad_(False)
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    if recomputed:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.ones((1, TOKENS), dtype=torch.long)
    with PeakMemory() as memory:
        TASKS[Task.CAUSAL_LM].loss(model(input_ids=ids).logits, {"labels": ids}).backward()
    return memory.peak / TOKENS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_estimate_of_gpus_has_the_logits_and_their_copies(dtype: torch.dtype) -> None:
    small, large = (peak_of_step(size, 1, dtype, recomputed=True) for size in (4000, 8000))
    assert (large - small) / 4000 == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_estimate_of_gpus_has_the_recomputed_layer_and_its_gradients(dtype: torch.dtype) -> None:
    """The inputs of all layers, and one layer at a time. Frozen layers keep less than the estimate counts."""
    facts = replace(adapted(Lora())[1], attention_size=64, key_value_size=32, intermediate_size=224)
    two, four = (peak_of_step(32, layers, dtype, recomputed=True) for layers in (2, 4))
    assert (four - two) / 2 == dtype.itemsize * 64
    saved = activations.saved_bytes(facts, dtype.itemsize, has_mask=False)
    estimate = saved + activations.backward_bytes(facts, dtype.itemsize)
    assert 0.75 * estimate <= two - 2 * dtype.itemsize * 64 <= 1.05 * estimate
