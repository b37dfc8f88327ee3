"""Which parameters `method.full.freeze` selects, and the messages about a block that does not fit the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype, Freeze, FullFineTune, Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.layers import layer_depths
from finetune_trainer.model.load import load_model
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.tasks import TASKS

FULL = METHODS["full"]
DECODERS, ENCODERS = ("llama", "llama-tied", "gpt2", "gpt_neox", "qwen2", "gemma"), ("bert", "distilbert", "roberta")


def task_of(family: str) -> Task:
    return Task.CAUSAL_LM if family in DECODERS else Task.SEQUENCE_CLASSIFICATION


def frozen_in(base: Path, family: str, **freeze: Any) -> set[str]:
    """Names that are frozen in the loaded model; the count of the prepare stage must agree."""
    task, block = task_of(family), FullFineTune(freeze=Freeze(**freeze))
    labels = () if task is Task.CAUSAL_LM else ("a", "b")
    model = load_model(base, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=1)
    FULL.apply(model, block, TASKS[task], seed=1)
    named = dict(model.named_parameters())
    frozen = {name for name, value in named.items() if not value.requires_grad}
    assert FULL.frozen_parameters(base, block, TASKS[task]) == sum(named[name].numel() for name in frozen)
    return frozen


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_the_first_layers_and_the_embeddings_of_every_architecture_are_found(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    frozen = frozen_in(tiny_model(family), family, embeddings=True, first_layers=1)
    tables = {name for name in frozen if ".0." not in name}
    assert all(part in name for name in tables for part in (".", "weight"))
    assert any("embed" in name or "wte" in name for name in tables)
    assert len(frozen - tables) >= 5
    assert not any(".1." in name for name in frozen)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_embeddings_have_the_lowest_learning_rate_in_every_architecture(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    task = task_of(family)
    model = load_model(tiny_model(family), task=task, labels=("a", "b"), dtype=Dtype.FLOAT32, seed=1)
    outside = {name: depth for name, depth in layer_depths(model).items() if not {"0", "1"} & {*name.split(".")}}
    embeddings = {name for name in outside if any(part in name for part in ("embed_", "embeddings", "wte", "wpe"))}
    assert outside == {name: 3 if name in embeddings - {"embed_out.weight"} else 0 for name in outside}
    assert embeddings
    assert (
        METHODS["full"].frozen_parameters(tiny_model(family), FullFineTune(layer_learning_rate_decay=0.5), TASKS[task])
        == 0
    )


def test_an_output_matrix_that_is_tied_to_the_embeddings_is_frozen_with_them(tiny_model: Callable[[str], Path]) -> None:
    for freeze in ({"embeddings": True}, {"patterns": ("lm_head.weight",)}):
        assert frozen_in(tiny_model("llama-tied"), "llama-tied", **freeze) == {"model.embed_tokens.weight"}
    assert frozen_in(tiny_model("llama"), "llama", embeddings=True) == {"model.embed_tokens.weight"}


def test_globs_match_complete_names(tiny_model: Callable[[str], Path]) -> None:
    frozen = frozen_in(tiny_model("bert"), "bert", patterns=("*.layer.[1].*.bias", "bert.embeddings.LayerNorm.weigh?"))
    assert "bert.embeddings.LayerNorm.weight" in frozen
    assert {name for name in frozen if ".layer." in name} == {name for name in frozen if name.endswith(".bias")}


def test_a_hostile_pattern_takes_no_time(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(BadConfigError, match="matches none"):
        frozen_in(tiny_model("bert"), "bert", patterns=(f"{'*e' * 127}!",))


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("llama", {"patterns": ("*", "model.layer.0.*")}, "freeze.patterns[1] must match a parameter", "model.layers.*."),
    ("llama", {"patterns": ("*",)}, "freeze must leave parameters to train", "remove a pattern"),
    ("llama", {"first_layers": 3}, "freeze.firstLayers must be at most 2", "write at most 2"),
    ("albert", {"first_layers": 1}, "freeze.firstLayers must be absent, because Albert", "name the parameters"),
]


@pytest.mark.parametrize(("family", "freeze", "message", "advice"), REFUSED)
def test_a_block_that_does_not_fit_is_refused_in_the_prepare_stage(
    tiny_model: Callable[[str], Path], family: str, freeze: dict[str, Any], message: str, advice: str
) -> None:
    with pytest.raises(BadConfigError) as caught:
        FULL.frozen_parameters(tiny_model(family), FullFineTune(freeze=Freeze(**freeze)), TASKS[task_of(family)])
    assert f"spec.method.full.{message}" in str(caught.value)
    assert advice in caught.value.advice


def test_a_new_head_cannot_be_frozen(tiny_model: Callable[[str], Path]) -> None:
    refusal = pytest.raises(BadConfigError, match=r"must not freeze classifier\.bias, which the base model lacks")
    with refusal:
        frozen_in(tiny_model("bert"), "bert", patterns=("classifier.*",))
    task, block = Task.SEQUENCE_CLASSIFICATION, FullFineTune(freeze=Freeze(patterns=("*.bias",)))
    new = plan_weights(tiny_model("bert"), "bert", task).new
    with refusal:
        FULL.frozen_parameters(tiny_model("bert"), block, TASKS[task], new)
