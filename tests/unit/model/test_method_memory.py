"""Memory that a method or an optimizer uses beyond that of the base model, measured and compared with the estimate."""

import weakref
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.v1alpha1 import Lora, OptimizerName, Task
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.counts import ActivationCounts
from finetune_trainer.model.estimate import STEP_BYTES
from finetune_trainer.model.inspect import ModelFacts
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.engine import make_optimizer
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


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that were created within the context, at most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        existing = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if torch.is_tensor(value) and (storage := value.untyped_storage())._cdata not in existing | {*self.known}:
                self.now += storage.nbytes()
                self.known[storage._cdata] = weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


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
    kept: weakref.WeakSet[Any] = weakref.WeakSet()

    class Saved:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value
            kept.add(self)

    with saved_tensors_hooks(Saved, lambda saved: saved.value):
        output = model(input_ids=torch.ones((1, TOKENS), dtype=torch.long))
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    storages = {saved.value.untyped_storage().data_ptr(): saved.value.untyped_storage().nbytes() for saved in kept}
    assert output.logits.requires_grad
    return sum(size for key, size in storages.items() if key not in own) // 4


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
