"""A merged model must have the update of its adapter, however small, and its files the weights of the model."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from finetune_api.v1alpha1 import Dtype, Task
from finetune_trainer.errors import ExportUnusableError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.load import load_model
from finetune_trainer.model.stored_weights import check_stored
from finetune_trainer.tasks import TASKS
from train_configs import train_config

GENTLE = 3e-4
"""Of LoRA's matrix B: an update of about a hundredth of what 16 bits can resolve of a weight."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("llama-tied", tmp_path_factory.mktemp("base") / "llama")


def adapted(base: Path, dtype: Dtype, size: float, block: dict[str, Any]) -> tuple[Any, Any]:
    """A base model with an adapter, not merged, and its method."""
    spec = train_config(method=block).spec.method
    method, task = METHODS[spec.name], Task.CAUSAL_LM
    model: Any = method.apply(
        load_model(base, task=task, labels=(), dtype=dtype, seed=1), spec.block, TASKS[task], seed=1
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model, method


@pytest.mark.parametrize(
    ("block", "dtype", "size"),
    [
        *(({"lora": {}}, dtype, size) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16) for size in (0.0, GENTLE, 3.0)),
        *((block, Dtype.BFLOAT16, 0.1) for block in ({"lora": {"variant": "DoRA"}}, {"ia3": {}}, {"osft": {}})),
        ({"layerNormTuning": {}}, Dtype.FLOAT16, GENTLE),
    ],
    ids=str,
)
def test_a_merged_update_of_any_size_is_accepted(base: Path, block: dict[str, Any], dtype: Dtype, size: float) -> None:
    model, method = adapted(base, dtype, size, block)
    method.merge(model)


@pytest.mark.parametrize("size", [GENTLE, 0.1])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize("times", ["never", "twice"])
def test_an_update_that_is_added_never_or_twice_is_found(base: Path, dtype: Dtype, size: float, times: str) -> None:
    model, method = adapted(base, dtype, size, {"lora": {}})
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    layer.merge = functools.partial(merge_wrongly, layer, layer.merge, times)  # as a defect of PEFT would
    with pytest.raises(ExportUnusableError, match=r"changed the layer model\.layers\.1\.self_attn\.q_proj"):
        method.merge(model)


def merge_wrongly(layer: Any, merge: Any, times: str, **options: Any) -> None:
    for _ in range(2 if times == "twice" else 0):
        merge(**options)
        layer.merged_adapters.clear()


def test_a_file_with_another_weight_than_the_model_is_found(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    name = next(iter(weights))
    save_file(weights, tmp_path / "model.safetensors")
    check_stored(tmp_path, weights)
    with pytest.raises(ExportUnusableError, match=f"{name} in .* is not the weight that was trained"):
        check_stored(tmp_path, weights | {name: weights[name] * 1.001})


def test_a_weight_that_is_missing_in_the_files_or_that_was_not_trained_is_found(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    lost = next(name for name in weights if name.endswith("up_proj.weight"))
    for written in (
        {name: weight for name, weight in weights.items() if name != lost},
        weights | {"another": torch.ones(3)},
        {name: weight for name, weight in weights.items() if name != lost} | {"renamed": 1.001 * weights[lost]},
    ):
        save_file(written, tmp_path / "model.safetensors")
        with pytest.raises(ExportUnusableError, match=r"must have all trained weights: \d+ values"):
            check_stored(tmp_path, weights)


def test_a_matrix_that_is_written_once_for_two_layers_and_divided_matrices_are_accepted(
    base: Path, tmp_path: Path
) -> None:
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    halves = dict(zip(("first", "second"), (half.contiguous() for half in weights[name].chunk(2)), strict=True))
    save_file({other: weights[other] for other in weights if other != name} | halves, tmp_path / "model.safetensors")
    check_stored(tmp_path, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})


@pytest.mark.parametrize("written", [[1.25, -1.25, 0.25], [0.5, -0.25, 0.0], [0.625, -0.5, 0.125]])
def test_errors_that_cancel_in_the_sum_are_found_under_another_name(written: list[float], tmp_path: Path) -> None:
    save_file({"renamed": torch.tensor(written)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportUnusableError, match=r"3 values with the sum 0\.25 .* were written as renamed"):
        check_stored(tmp_path, {"trained": torch.tensor([0.5, -0.5, 0.25])})
