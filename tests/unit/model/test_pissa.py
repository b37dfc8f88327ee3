"""LoRA that begins with the singular vectors of the base model's matrices."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from finetune_api.v1alpha1 import Dtype, Lora, Task
from finetune_api.v1alpha1.methods.lora import LoraInit
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.initial_weights import begin_with
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks import TASKS

METHOD: Any = METHODS["lora"]
TASK = TASKS[Task.CAUSAL_LM]
RANK = 4


def adapted(folder: Path, block: Lora, dtype: Dtype = Dtype.FLOAT32) -> Any:
    model = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=dtype, seed=1)
    return METHOD.apply(model, block, TASK, seed=1)


def pissa(**fields: Any) -> Lora:
    return Lora(init=LoraInit.PISSA, **{"rank": RANK, **fields})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_initial_update_is_the_best_matrix_of_its_rank_and_the_rest_is_frozen(family: str, tmp_path: Path) -> None:
    folder = tiny_models.save_tiny(family, tmp_path / "base")
    block = pissa(alpha=6)
    model = adapted(folder, block)
    before = {name: value.clone() for name, value in model.named_parameters()}
    initial = METHOD.initial_weights(model, block, seed=1)
    begin_with(model, METHOD, block, initial)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    bases = {name for name in before if name.endswith("base_layer.weight")}
    assert changed == bases | {*initial}
    assert initial.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    parameters = dict(model.named_parameters())
    for name in bases:
        is_transposed = family == "gpt2"
        whole, rest = (found[name].T if is_transposed else found[name] for found in (before, parameters))
        left, values, right = torch.linalg.svd(whole)
        best = left[:, :RANK] @ torch.diag(values[:RANK]) @ right[:RANK]
        first, second = (parameters[name.replace("base_layer", f"lora_{which}.default")] for which in "AB")
        torch.testing.assert_close(second @ first * block.scale / RANK, best, rtol=0, atol=1e-4)
        torch.testing.assert_close(rest, whole - best, rtol=0, atol=1e-4)


def test_the_values_do_not_depend_on_earlier_random_numbers_and_leave_them_as_they_are(tmp_path: Path) -> None:
    model = adapted(tiny_models.save_tiny("llama", tmp_path / "base"), pissa())
    torch.manual_seed(5)
    first, state = METHOD.initial_weights(model, pissa(), seed=1), torch.get_rng_state()
    torch.manual_seed(6)
    second = METHOD.initial_weights(model, pissa(), seed=1)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", [LoraInit.KAIMING, LoraInit.GAUSSIAN])
def test_other_adapters_begin_with_random_values_and_an_update_of_zero(init: LoraInit, tmp_path: Path) -> None:
    block = Lora(rank=RANK, init=init)
    assert not METHOD.has_initial_weights(block)
    model = adapted(tiny_models.save_tiny("llama", tmp_path / "base"), block)
    for name, value in model.named_parameters():
        if "lora_A" in name:
            bound = value.abs().max() / value.std()
            assert bound < 2.0 if init is LoraInit.KAIMING else bound > 2.0, name
        if "lora_B" in name:
            assert not value.any()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (pissa(rank=33), "spec.method.lora.rank must be at most 32 with init PiSSA, the number of singular values of"),
        (
            pissa(target_modules=("wte",)),
            "spec.method.lora.init must not be PiSSA for wte, which is not a linear layer",
        ),
    ],
)
def test_matrices_without_so_many_singular_values_are_refused_before_the_training(
    block: Lora, message: str, tmp_path: Path
) -> None:
    folder = tiny_models.save_tiny("gpt2", tmp_path / "base")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    with pytest.raises(BadConfigError, match=message):
        METHOD.check(folder, block, TASK)


def test_the_note_names_both_ranks(tmp_path: Path) -> None:
    assert METHOD.note(tmp_path, pissa(), TASK) == (
        "PiSSA: the adapter begins with the 4 largest singular values of each adapted matrix; the exported adapter has "
        "rank 8"
    )
    assert METHOD.note(tmp_path, Lora(), TASK) == ""
