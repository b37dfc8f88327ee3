"""Which parameters `method.full.gradualUnfreezing` trains since which phase, and the messages about a block that does
not fit the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype, Freeze, FullFineTune, GradualUnfreezing, Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.unfreezing import describe_phases, phase_at
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks import TASKS

FULL = METHODS["full"]
ENCODERS = ("bert", "distilbert", "roberta", "albert")


def block_of(freeze: dict[str, Any] | None = None, **unfreezing: Any) -> FullFineTune:
    return FullFineTune(
        freeze=None if freeze is None else Freeze(**freeze),
        gradual_unfreezing=GradualUnfreezing(steps_per_phase=5, **unfreezing),
    )


def task_of(family: str) -> Task:
    return Task.SEQUENCE_CLASSIFICATION if family in ENCODERS else Task.CAUSAL_LM


def phases_of(base: Path, family: str, block: FullFineTune) -> dict[str, int]:
    """Of the loaded model; the prepare stage must accept the block too."""
    task = task_of(family)
    FULL.frozen_parameters(base, block, TASKS[task])
    labels = ("a", "b") if task is Task.SEQUENCE_CLASSIFICATION else ()
    model = load_model(base, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=1)
    FULL.apply(model, block, TASKS[task], seed=1)
    found = FULL.first_phases(model, block)
    assert found.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    return found


def part_of(name: str) -> str:
    """The part of a model with two layers that a parameter is in, by its name."""
    if any(part in name for part in ("embed_tokens", "embed_in", "embeddings")):
        return "embeddings"
    return next((f"layer {index}" for index in (0, 1) if f".{index}." in name), "head")


PHASES: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({}, {"head": 0, "layer 1": 1, "layer 0": 2, "embeddings": 2}),
    ({"start_layers": 1}, {"head": 0, "layer 1": 0, "layer 0": 1, "embeddings": 1}),
    ({"layers_per_phase": 9}, {"head": 0, "layer 1": 1, "layer 0": 1, "embeddings": 1}),
    ({"freeze": {"patterns": ("*embed*",)}}, {"head": 0, "layer 1": 1, "layer 0": 2}),
    ({"freeze": {"first_layers": 1}}, {"head": 0, "layer 1": 1, "embeddings": 1}),
    # A layer that is frozen in part only has its phase.
    ({"freeze": {"patterns": ("*.1.*att*.weight",)}}, {"head": 0, "layer 1": 1, "layer 0": 2, "embeddings": 2}),
]


@pytest.mark.parametrize(("settings", "expected"), PHASES)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bert", "distilbert"])
def test_layers_are_added_from_the_last_to_the_first(
    tiny_model: Callable[[str], Path], family: str, settings: dict[str, Any], expected: dict[str, int]
) -> None:
    found = phases_of(tiny_model(family), family, block_of(**settings))
    assert {(part_of(name), phase) for name, phase in found.items()} == set(expected.items())


def test_an_output_matrix_that_is_tied_to_the_embeddings_is_trained_in_the_last_phase(
    tiny_model: Callable[[str], Path],
) -> None:
    found = phases_of(tiny_model("llama-tied"), "llama-tied", block_of())
    assert {name for name, phase in found.items() if phase == 0} == {"model.norm.weight"}
    assert found["model.embed_tokens.weight"] == 2


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("llama", {"start_layers": 2}, ".startLayers must be less than 2, the number of layers of Llama", "at most 1"),
    ("llama", {"start_layers": 1, "freeze": {"first_layers": 1}}, ".startLayers must be less than 1", "at most 0"),
    ("llama", {"freeze": {"first_layers": 2}}, " must be absent, because spec.method.full.freeze freezes all", "fewer"),
    ("llama-tied", {"freeze": {"patterns": ("model.norm.*",)}}, ".startLayers must be at least 1", "startLayers: 1"),
    ("albert", {}, " must be absent, because AlbertForSequenceClassification has no list of", "remove it"),
]


@pytest.mark.parametrize(("family", "settings", "message", "advice"), REFUSED)
def test_a_block_that_does_not_fit_is_refused_in_the_prepare_stage(
    tiny_model: Callable[[str], Path], family: str, settings: dict[str, Any], message: str, advice: str
) -> None:
    with pytest.raises(BadConfigError) as caught:
        FULL.frozen_parameters(tiny_model(family), block_of(**settings), TASKS[task_of(family)])
    assert f"spec.method.full.gradualUnfreezing{message}" in str(caught.value)
    assert advice in caught.value.advice


NOTES = [
    (3, 5, 20, "gradual unfreezing in 3 phases of 5 steps; the last one starts at step 11 of 20"),
    (3, 5, 11, "gradual unfreezing in 3 phases of 5 steps; the last one starts at step 11 of 11"),
    (3, 5, 10, "gradual unfreezing in 3 phases of 5 steps: the training ends at step 10, in phase 2, so that"),
    (2, 1, 1, "gradual unfreezing in 2 phases of 1 step: the training ends at step 1, in phase 1, so that"),
]


@pytest.mark.parametrize(("phases", "steps", "total", "note"), NOTES)
def test_the_note_says_when_the_last_phase_starts_or_that_it_never_does(
    phases: int, steps: int, total: int, note: str
) -> None:
    assert describe_phases(phases, steps, total).startswith(note)


def test_the_phase_follows_from_the_number_of_completed_steps() -> None:
    assert [phase_at(step, 3, 3) for step in range(11)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_epochs_are_converted_to_steps() -> None:
    assert GradualUnfreezing(epochs_per_phase=2).phase_steps(7) == 14
    assert GradualUnfreezing(steps_per_phase=4).phase_steps(7) == 4
