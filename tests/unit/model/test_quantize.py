"""Quantized base models: what is quantized, what it computes, and that exports are what was trained."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Quantization, Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.quantize import BaseQuantization, logical_numel, quantizable, rounded_matrix
from finetune_trainer.model.quantize_check import check_quantization
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.tasks import TASKS
from method_cases import METHOD_CASES, needed_with
from train_configs import train_config

IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])
LABELS = ("animal", "food")
FAMILIES = {
    "llama-tied": Task.CAUSAL_LM,
    "gpt2": Task.CAUSAL_LM,  # its matrices are stored transposed
    "bert": Task.SEQUENCE_CLASSIFICATION,
    "roberta": Task.SEQUENCE_CLASSIFICATION,  # its head has several layers
    "distilbert": Task.SEQUENCE_CLASSIFICATION,
}
ADAPTERS = [
    case
    for case, method in METHOD_CASES.items()
    if METHODS[next(iter(method))].block.support.quantizations and case != "lora-PiSSA"  # refused
]
BYTES = {Quantization.NF4: 0.6, Quantization.INT8: 1.2}
"""For each weight of matrices of this size, at most."""


def labels_of(task: Task) -> tuple[str, ...]:
    return LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def loaded(base: Path, task: Task, how: BaseQuantization | None, *, seed: int = 3, dtype: Dtype = Dtype.FLOAT32) -> Any:
    return load_model(base, task=task, labels=labels_of(task), dtype=dtype, seed=seed, quantization=how)


@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_of_the_body_are_quantized_and_nothing_else(
    family: str, kind: Quantization, tiny_model: Callable[[str], Path]
) -> None:
    base, task = tiny_model(family), FAMILIES[family]
    plan = plan_weights(base, "base", task, labels_of(task))
    model, plain = loaded(base, task, BaseQuantization(kind)), loaded(base, task, None)
    whole = dict(plain.named_parameters())
    packed = {
        name.removesuffix(".weight"): value
        for name, value in model.named_parameters()
        if not value.dtype.is_floating_point
    }
    assert packed
    assert packed.keys() == quantizable(kind, plan.matrices).keys()
    assert all(".layer" in f".{name}" or ".h." in f".{name}" for name in packed)
    for name, value in packed.items():
        rows, columns = plan.matrices[name]
        assert logical_numel(value) == rows * columns == whole[f"{name}.weight"].numel()
        assert value.nbytes <= BYTES[kind] * rows * columns
        assert not value.requires_grad
    for name, value in model.named_parameters():
        if value.dtype.is_floating_point:
            assert torch.equal(value, whole[name]), name
    assert 0 < (logits(model) - logits(plain)).abs().max() < 0.2


@pytest.mark.parametrize(("kind", "most"), [(Quantization.NF4, 0.12), (Quantization.INT8, 0.02)])
@pytest.mark.parametrize("shape", [(48, 32), (64, 64), (256, 160), (312, 1200), (384, 384), (10, 704)])
def test_the_values_of_a_quantized_matrix_are_close_to_its_own(
    shape: tuple[int, int], kind: Quantization, most: float
) -> None:
    """With rows of different size, a value would be far off if it had the scale of another block."""
    torch.manual_seed(1)
    weight = torch.randn(shape) * torch.linspace(1, 5, shape[0])[:, None]
    if not quantizable(kind, {"layer": shape}):
        assert kind is Quantization.NF4
        assert shape[1] % 64
        return
    rounded = rounded_matrix(weight, BaseQuantization(kind))
    assert (rounded - weight).norm() < most * weight.norm()


def small(config: Any, **sizes: Any) -> Any:
    return config(vocab_size=99, hidden_size=64, num_hidden_layers=2, **sizes)


def test_a_class_that_only_multiplies_with_its_linear_layers_can_be_quantized() -> None:
    config = small(LlamaConfig, intermediate_size=64, num_attention_heads=2)
    check_quantization(LlamaForCausalLM, config, "base", Task.CAUSAL_LM)


@pytest.mark.parametrize(
    ("model_class", "config", "reason"),
    [
        (MambaForCausalLM, small(MambaConfig, state_size=4), "RuntimeError: "),
        (
            LongcatFlashForCausalLM,
            LongcatFlashConfig(vocab_size=99, num_layers=1),
            "reads the weights of its linear layers itself",
        ),
    ],
)
def test_a_class_that_uses_weights_in_another_way_is_refused(model_class: Any, config: Any, reason: str) -> None:
    with pytest.raises(BadConfigError, match=f"quantization must be absent .* {model_class.__name__}.* {reason}"):
        check_quantization(model_class, config, "base", Task.CAUSAL_LM)


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_quantized_model_computes_what_the_layers_with_its_values_compute(
    family: str, kind: Quantization, dtype: Dtype, tiny_model: Callable[[str], Path]
) -> None:
    base, task = tiny_model(family), FAMILIES[family]
    model = loaded(base, task, BaseQuantization(kind), dtype=dtype)
    rounded = loaded(base, task, BaseQuantization(kind, dequantized=True), dtype=dtype)
    in_eval = logits(model)
    assert in_eval.dtype is rounded.dtype
    torch.testing.assert_close(in_eval, logits(rounded))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with_gradients = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(with_gradients.detach(), in_eval)
    torch.testing.assert_close(logits(model), in_eval, rtol=0, atol=0)


@pytest.mark.parametrize("kind", Quantization)
def test_two_loads_give_the_same_bits(kind: Quantization, tiny_model: Callable[[str], Path]) -> None:
    base = tiny_model("llama-tied")
    first, second = (loaded(base, Task.CAUSAL_LM, BaseQuantization(kind)).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, Quantization.NF4) for case in ADAPTERS), ("lora", Quantization.INT8), ("lora-DoRA", Quantization.INT8)],
)
def test_gradients_are_those_of_the_layers_with_the_same_values(
    case: str, kind: Quantization, tiny_model: Callable[[str], Path]
) -> None:
    base, (name,) = tiny_model("llama-tied"), METHOD_CASES[case]
    config = train_config(model={"uri": f"file://{base}"}, method=METHOD_CASES[case], **needed_with(name))
    block, task = config.spec.method.block, TASKS[Task.CAUSAL_LM]
    gradients = []
    for dequantized in (False, True):
        how = BaseQuantization(kind, dequantized=dequantized)
        model: Any = METHODS[name].apply(loaded(base, Task.CAUSAL_LM, how), block, task, seed=1)
        if True in METHODS[name].block.support.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.logsumexp(-1).sum().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.requires_grad})
    assert all(value is not None for value in gradients[0].values())
    assert any(value.abs().max() > 0 for value in gradients[0].values())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "case", "kind"),
    [
        *(("llama-tied", case, Quantization.NF4) for case in ADAPTERS),
        *((family, case, Quantization.INT8) for family in ("gpt2", "bert") for case in ("lora-DoRA", "ia3")),
        ("gpt2", "lora", Quantization.NF4),
        ("bert", "layerNormTuning", Quantization.INT8),
        ("roberta", "lora", Quantization.NF4),
    ],
)
def test_merged_model_and_adapter_are_the_trained_model(
    family: str, case: str, kind: Quantization, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base, task = tiny_model(family), FAMILIES[family]
    (name,) = METHOD_CASES[case]
    config = train_config(
        model={"uri": f"file://{base}", "quantization": kind},
        method=METHOD_CASES[case],
        **needed_with(name),
        prepared={"task": task, "labels": labels_of(task)},
    )
    method, prepared, how = METHODS[name], config.prepared, BaseQuantization(kind)
    model: Any = method.apply(loaded(base, task, how), config.spec.method.block, TASKS[task], seed=1)
    weights = {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.1 * torch.randn_like(value))
    formats = [artifact for artifact in METHODS[name].block.support.formats if not artifact.is_quantized]
    for artifact in formats:
        write_folder(artifact, model, weights, tmp_path / artifact, config=config, base=base)
        if (tmp_path / artifact / "config.json").exists():
            assert "quantization" not in (tmp_path / artifact / "config.json").read_text()
    trained = logits(model)
    again = reload_adapter(loaded(base, task, how, seed=4), tmp_path / "Adapter", "adapter", prepared, method)
    torch.testing.assert_close(logits(again), trained)
    # On the base model itself, it is another model, but it loads.
    other = reload_adapter(loaded(base, task, None, seed=4), tmp_path / "Adapter", "adapter", prepared, method)
    assert not torch.equal(logits(other), trained)
    if ArtifactFormat.MERGED in formats:
        torch.testing.assert_close(logits(reload_model(tmp_path / "Merged", "model", prepared)), trained)


def test_bitsandbytes_is_imported_for_a_quantized_model_alone(tiny_model: Callable[[str], Path]) -> None:
    base = tiny_model("llama-tied")
    program = f"""
import json
import sys
from finetune_trainer.bitsandbytes_import import disable_bitsandbytes
disable_bitsandbytes()
import peft
from pathlib import Path
from finetune_api.v1alpha1 import Dtype, Lora, Quantization, Task
from finetune_trainer.methods import METHODS
from finetune_trainer.model.load import load_model
from finetune_trainer.model.quantize import BaseQuantization
from finetune_trainer.tasks import TASKS

kinds = []
for how in (None, BaseQuantization(Quantization.NF4), BaseQuantization(Quantization.INT8), None):
    model = load_model(
        Path({str(base)!r}), task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1, quantization=how
    )
    adapted = METHODS["lora"].apply(model, Lora(), TASKS[Task.CAUSAL_LM], seed=1)
    kinds.append((type(adapted.get_submodule("base_model.model.model.layers.0.mlp.down_proj")).__name__,
                  sys.modules["bitsandbytes"] is not None))
print(json.dumps(kinds))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [["Linear", False], ["Linear4bit", True], ["Linear8bitLt", True], ["Linear", True]]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
