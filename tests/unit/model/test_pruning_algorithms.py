"""Which weights and layers `method.full.pruning` removes, and the messages about blocks that do not fit the model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig, GPT2Config, LlamaConfig

from finetune_api.v1alpha1 import Dtype, Freeze, FullFineTune, Pruning, PruningAlgorithm, Task
from finetune_trainer.errors import BadConfigError, TrainerError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.layers import layer_depths
from finetune_trainer.methods.pruning import PRUNERS, Masks
from finetune_trainer.methods.pruning.magnitude import smallest
from finetune_trainer.methods.pruning.matrices import layer_matrices
from finetune_trainer.model.drop_check import check_dropped_layers
from finetune_trainer.model.load import load_model
from finetune_trainer.model.pruning import check_zeros, keep_zeros, set_zeros
from finetune_trainer.tasks import TASKS

FULL = METHODS["full"]
DECODERS, ENCODERS = ("llama", "gpt2", "gpt_neox", "qwen2", "gemma"), ("bert", "distilbert", "roberta")
ROWS = torch.arange(24).view(3, 8)
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def task_of(family: str) -> Task:
    return Task.CAUSAL_LM if family in DECODERS else Task.SEQUENCE_CLASSIFICATION


def loaded(base: Path, family: str) -> Any:
    labels = () if family in DECODERS else ("a", "b")
    return load_model(base, task=task_of(family), labels=labels, dtype=Dtype.FLOAT32, seed=1).eval()


def block(algorithm: str, **settings: Any) -> Pruning:
    return Pruning(algorithm=PruningAlgorithm(algorithm), **settings)


def masks_of(model: Any, algorithm: str, sparsity: float) -> Masks:
    with torch.no_grad():
        return PRUNERS[algorithm].masks(model, block(algorithm, sparsity=sparsity), lambda: model(input_ids=ROWS))


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("algorithm", ["Magnitude", "Wanda"])
def test_the_note_of_the_prepare_stage_counts_the_zeros_of_every_architecture(
    tiny_model: Callable[[str], Path], family: str, algorithm: str
) -> None:
    model = loaded(tiny_model(family), family)
    masks = masks_of(model, algorithm, 0.3)
    zeros, weights = (
        sum(int(value) for value in values)
        for values in zip(*((mask.sum(), mask.numel()) for mask in masks.values()), strict=True)
    )
    note = FULL.note(tiny_model(family), FullFineTune(pruning=block(algorithm, sparsity=0.3)), TASKS[task_of(family)])
    assert f"{zeros:,} of {weights:,} weights in {len(masks)} matrices" in note
    assert abs(zeros / weights - 0.3) < 0.02
    assert not [name for name in masks if any(part in name for part in ("embed", "head", "classifier", "norm", "wte"))]


def test_the_smallest_of_equal_values_are_the_first() -> None:
    values = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 3.0]])
    assert smallest(values, 0.5).tolist() == [[False, True, True], [False, True, False]]
    assert not smallest(values, 0.05).any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wanda_compares_weights_times_the_norms_of_their_inputs_within_each_output(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    """Written down once more, with the inputs of all tokens at once. GPT-2 stores its matrices transposed."""
    model = loaded(tiny_model(family), family)
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    for name, matrix in layer_matrices(model).items():
        matrix.module.register_forward_pre_hook(
            lambda _, values, name=name: inputs.update({name: values[0].flatten(0, 1).numpy()})
        )
    masks = masks_of(model, "Wanda", 0.5)
    for name, matrix in layer_matrices(model).items():
        weight = matrix.oriented(matrix.weight.detach()).numpy()
        scores = np.abs(weight) * np.linalg.norm(inputs[name], axis=0)
        wanted = scores < np.quantile(scores, 0.5, axis=1, keepdims=True, method="higher")
        assert np.array_equal(matrix.oriented(masks[name]).numpy(), wanted), name


def test_masked_values_stay_zero_in_a_training_and_others_are_checked(tiny_model: Callable[[str], Path]) -> None:
    model = loaded(tiny_model("llama"), "llama")
    masks = masks_of(model, "Magnitude", 0.5)
    set_zeros(model, masks)
    model.requires_grad_(False)
    keep_zeros(model, masks)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(input_ids=ROWS, labels=ROWS).loss.backward()
        optimizer.step()
    check_zeros(model, masks)
    name, mask = next(iter(masks.items()))
    parameter = dict(model.named_parameters())[name]
    assert (parameter[~mask] != 0).all()
    with torch.no_grad():
        parameter[mask] = 1e-30
    with pytest.raises(TrainerError, match=f"{int(mask.sum()):,} values of {name} .* are not zero"):
        check_zeros(model, masks)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_a_model_without_a_layer_is_the_one_that_its_config_describes(
    tiny_model: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    """The first of two layers is dropped, so the weights of the second one are those of layer 0."""
    model, task = loaded(tiny_model(family), family), TASKS[task_of(family)]
    before = dict(model.named_parameters())
    tuned = FULL.apply(model, FullFineTune(pruning=block("DropLayers", layers=1)), task, seed=1)
    model.save_pretrained(tmp_path)
    again, found = task.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] | found["unexpected_keys"]
    assert again.config.num_hidden_layers == 1
    with torch.no_grad():
        wanted = tuned.eval()(input_ids=ROWS).logits
        assert torch.equal(again.eval()(input_ids=ROWS).logits, wanted)
    kept = {name.replace(".1.", ".0."): value for name, value in before.items() if ".0." not in name}
    assert all(torch.equal(value, kept[name]) for name, value in again.named_parameters())


def test_a_decoder_without_a_layer_generates_with_its_cache(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = loaded(tiny_model("qwen2"), "qwen2")
    FULL.apply(model, FullFineTune(pruning=block("DropLayers", layers=1)), TASKS[Task.CAUSAL_LM], seed=1)
    model.save_pretrained(tmp_path)
    assert len(model.config.layer_types) == 1
    answers = [
        one.generate(ROWS, max_new_tokens=4, do_sample=False, use_cache=cached)
        for one, cached in ((model, True), (model, False), (AutoModelForCausalLM.from_pretrained(tmp_path), True))
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_freezing_and_learning_rates_count_the_layers_that_are_left(tiny_model: Callable[[str], Path]) -> None:
    model, task = loaded(tiny_model("bert"), "bert"), TASKS[Task.SEQUENCE_CLASSIFICATION]
    settings = FullFineTune(pruning=block("DropLayers", layers=1), freeze=Freeze(first_layers=1))
    tuned = FULL.apply(model, settings, task, seed=1)
    frozen = [value.numel() for value in tuned.parameters() if not value.requires_grad]
    assert FULL.frozen_parameters(tiny_model("bert"), settings, task) == sum(frozen) > 0
    assert {depth for name, depth in layer_depths(model).items() if ".layer." in name} == {1}
    too_many = settings.model_copy(update={"freeze": Freeze(first_layers=2)})
    with pytest.raises(BadConfigError, match=r"freeze\.firstLayers must be at most 1"):
        FULL.frozen_parameters(tiny_model("bert"), too_many, task)


def mixed_experts(base: Path) -> Path:
    """A decoder with experts in its second layer only."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2MoeConfig(
        **sizes, vocab_size=64, num_hidden_layers=2, num_experts=2, moe_intermediate_size=32, mlp_only_layers=[0]
    )
    Qwen2MoeForCausalLM(config).save_pretrained(base)
    return base


REFUSED: list[tuple[str, Pruning, str, str]] = [
    ("llama", block("DropLayers", layers=2), r"\.layers must be less than 2, the number of .*, not 2", "at most 1"),
    ("albert", block("DropLayers", layers=1), " must be absent, because Albert.* has no list", "another base model"),
    ("albert", block("Magnitude", sparsity=0.5), " must be absent, because Albert.* has no list", "another base model"),
    ("experts", block("DropLayers", layers=1), r"\.algorithm must not be DropLayers, because the layers", "Magnitude"),
    ("experts", block("Wanda", sparsity=0.5), r" must be absent, because .*mlp.* is not the weight", "DropLayers"),
]


@pytest.mark.parametrize(("family", "pruning", "message", "advice"), REFUSED)
def test_a_block_that_does_not_fit_is_refused_in_the_prepare_stage(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, pruning: Pruning, message: str, advice: str
) -> None:
    base = mixed_experts(tmp_path) if family == "experts" else tiny_model(family)
    task = TASKS[Task.CAUSAL_LM if family in (*DECODERS, "experts") else Task.SEQUENCE_CLASSIFICATION]
    with pytest.raises(BadConfigError, match=rf"^spec\.method\.full\.pruning{message}") as caught:
        FULL.note(base, FullFineTune(pruning=pruning), task)
    assert advice in caught.value.advice


def test_masks_are_counted_in_the_estimate_of_memory() -> None:
    sizes: Any = type("Sizes", (), {"linear": (("a", (4, 8)), ("b", (8, 8)))})
    with_zeros, without = block("Wanda", sparsity=0.5), block("DropLayers", layers=1)
    flags = [FULL.activations(sizes, FullFineTune(pruning=one)).flags for one in (with_zeros, without, None)]
    assert flags == [96, 0, 0]


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (LlamaConfig(vocab_size=60, **SIZES), ""),
        (GPT2Config(vocab_size=60, n_embd=16, n_layer=4, n_head=2), ""),
        (
            DiffLlamaConfig(vocab_size=60, **SIZES),
            "class of s3://b/m computes with the number of a layer",
        ),
    ],
    ids=["llama", "gpt2", "diffllama"],
)
def test_classes_that_compute_with_the_number_of_a_layer_are_refused(config: Any, refused: str) -> None:
    block = Pruning(algorithm=PruningAlgorithm.DROP_LAYERS, layers=1)
    model_class = type(AutoModelForCausalLM.from_config(config))
    with pytest.raises(BadConfigError, match=refused) if refused else nullcontext():
        check_dropped_layers(model_class, config, "s3://b/m", block)
