"""Folders whose weights do not match the model: only a head is ever initialized randomly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny_models
from finetune_api.v1alpha1 import Dtype, Task
from finetune_trainer.errors import ModelUnusableError
from finetune_trainer.model.load import load_model
from finetune_trainer.model.weights import matching_rows, plan_weights

CLASSES = ("bad", "good")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def classifier(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose ids are not in the order of its labels."""
    model = loaded(bert, labels=("good", "bad"))
    folder = tmp_path_factory.mktemp("classifier")
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, 2.0]))
    model.save_pretrained(folder)
    tiny_models.tiny_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, task: Task = Task.SEQUENCE_CLASSIFICATION, labels: tuple[str, ...] = CLASSES, seed: int = 1):
    return load_model(folder, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=seed)


def with_names(base: Path, folder: Path, rename: Callable[[str], str]) -> Path:
    """A copy whose weights have other names."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    save_file({rename(name): value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def with_config(base: Path, folder: Path, **changes: object) -> Path:
    """A copy with a different config.json."""
    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refusal(folder: Path, task: Task = Task.SEQUENCE_CLASSIFICATION) -> ModelUnusableError:
    """The error of prepare; loading raises it too."""
    with pytest.raises(ModelUnusableError):
        loaded(folder, task)
    with pytest.raises(ModelUnusableError) as caught:
        plan_weights(folder, "s3://bucket/base", task)
    return caught.value


WRAPPERS = ("module.", "_orig_mod.", "model.", "encoder.", "base_model.model.")


@pytest.mark.parametrize(
    ("task", "prefix"),
    [(task, prefix) for task in Task for prefix in WRAPPERS if (task, prefix) != (Task.CAUSAL_LM, "model.")],
)
def test_weights_with_the_names_of_a_wrapper_are_rejected(llama, bert, tmp_path, task, prefix):
    base = llama if task is Task.CAUSAL_LM else bert
    folder = with_names(base, tmp_path / "wrapped", lambda name: prefix + name)
    error = refusal(folder, task)
    total = len(load_file(base / "model.safetensors"))
    assert "s3://bucket/base lacks " in str(error)
    assert f"; {total} weights in the folder are not used: {prefix}" in str(error)
    assert f"begin with '{prefix}'" in error.advice


def test_a_repeated_prefix_of_the_base_model_is_read_as_one(llama, tmp_path):
    model = loaded(with_names(llama, tmp_path / "twice", lambda name: f"model.{name}"), Task.CAUSAL_LM)
    kept = load_file(llama / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_a_different_name_within_the_base_model_is_reported(bert, tmp_path):
    folder = with_names(bert, tmp_path / "other", lambda name: name.replace("layer.1.", "layers.1."))
    error = refusal(folder)
    assert "lacks 16 of the model's 41 weights: bert.encoder.layer.1.attention.output.LayerNorm.bias, " in str(error)
    assert "16 weights in the folder are not used: encoder.layers.1.attention.output.LayerNorm.bias, " in str(error)


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        (
            Task.SEQUENCE_CLASSIFICATION,
            {"hidden_size": 64},
            "bert.embeddings.LayerNorm.bias is [32] in the weight files and [64] according to config.json",
        ),
        (Task.SEQUENCE_CLASSIFICATION, {"num_hidden_layers": 3}, "lacks 16 of the model's 57 weights: bert.encoder"),
        (
            Task.CAUSAL_LM,
            {"intermediate_size": 96},
            "model.layers.0.mlp.down_proj.weight is [32, 64] in the weight files and [32, 96] according to config.json",
        ),
        (Task.SEQUENCE_CLASSIFICATION, {"num_attention_heads": 5}, "cannot be loaded for SequenceClassification"),
        (Task.SEQUENCE_CLASSIFICATION, {"hidden_size": "wide"}, "cannot be loaded for SequenceClassification"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_rejected(bert, llama, tmp_path, task, changes, expected):
    base = llama if task is Task.CAUSAL_LM else bert
    error = refusal(with_config(base, tmp_path / "other", **changes), task)
    assert expected in str(error)
    assert error.advice


def test_a_language_model_without_its_head_is_rejected(llama, tmp_path):
    folder = with_names(llama, tmp_path / "headless", lambda name: name.replace("lm_head", "old_head"))
    error = refusal(folder, Task.CAUSAL_LM)
    assert "lacks 1 of the model's 21 weights: lm_head.weight" in str(error)
    assert "language-modeling head" in error.advice


def test_layers_that_the_config_lacks_are_reported(bert, tmp_path):
    plan = plan_weights(with_config(bert, tmp_path / "short", num_hidden_layers=1), "uri", Task.SEQUENCE_CLASSIFICATION)
    assert len(plan.unused) == 16
    assert plan.unused[0] == "encoder.layer.1.attention.output.LayerNorm.bias"


def test_only_head_and_pooler_may_be_new(bert, tmp_path):
    folder = with_names(bert, tmp_path / "masked", lambda name: name.replace("pooler", "cls"))
    plan = plan_weights(folder, "uri", Task.SEQUENCE_CLASSIFICATION, CLASSES)
    new = ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight")
    assert plan.new == new
    assert plan.unused == ()
    first, second = loaded(folder), loaded(folder, seed=2)
    kept = load_file(bert / "model.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) is (name not in new or name.endswith("bias")), name
        if name not in new:
            assert torch.equal(value, kept[name.removeprefix("bert.")])


TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}


XLNET = {"vocab_size": 400, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}


def tiny(kind: str, folder: Path, **settings: object):
    """Save a random classifier of an architecture."""
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.pad_token = "<s>"  # the id 1
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("roberta", {}),
        ("xlm-roberta", {}),
        ("camembert", {}),
        ("data2vec-text", {}),
        ("mpnet", {}),
        ("ibert", {}),
        ("longformer", {"attention_window": 8}),
        ("luke", {"entity_vocab_size": 10, "entity_emb_size": 8}),
    ],
)
def test_positions_that_start_after_the_pad_id_leave_fewer_tokens(tmp_path, kind, more):
    model = tiny(kind, tmp_path, **TINY, **more)
    positions = plan_weights(tmp_path, "uri", Task.SEQUENCE_CLASSIFICATION).positions
    assert positions == 38
    with torch.no_grad():
        model(input_ids=torch.full((1, positions), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 7))


def test_a_model_that_counts_positions_from_zero_has_them_all(bert):
    assert plan_weights(bert, "uri", Task.SEQUENCE_CLASSIFICATION).positions is None


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("albert", TINY | {"embedding_size": 16}, False),
        ("mpnet", TINY, False),
        ("xlnet", XLNET, False),
        ("electra", TINY, True),
    ],
)
def test_whether_a_model_supports_gradient_checkpointing_is_known(tmp_path, kind, settings, expected):
    tiny(kind, tmp_path, **settings)
    plan = plan_weights(tmp_path, "uri", Task.SEQUENCE_CLASSIFICATION)
    assert plan.gradient_checkpointing is expected
    assert plan.checkpointable_layers == (plan.config.num_hidden_layers if expected else 0)


def test_a_classifier_with_the_same_labels_keeps_the_row_of_each_label(classifier):
    before = load_file(classifier / "model.safetensors")
    model = loaded(classifier, labels=("bad", "good"))
    assert torch.equal(model.classifier.weight, before["classifier.weight"].flip(0))
    assert model.classifier.bias.tolist() == [2.0, 1.0]
    assert model.config.id2label == {0: "bad", 1: "good"}
    plan = plan_weights(classifier, "uri", Task.SEQUENCE_CLASSIFICATION, ("bad", "good"))
    assert plan.has_head
    assert plan.labels.note == "the base model's classifier is kept: it has the labels of the data"


def test_a_classifier_with_swapped_rows_and_labels_is_the_same_model(classifier, tmp_path):
    swapped = with_config(classifier, tmp_path / "swapped", id2label={"0": "bad", "1": "good"})
    weights = load_file(swapped / "model.safetensors")
    rows = {name: value.flip(0).contiguous() for name, value in weights.items() if name.startswith("classifier.")}
    save_file(weights | rows, swapped / "model.safetensors", {"format": "pt"})
    one, other = loaded(classifier).state_dict(), loaded(swapped).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("id2label", "labels"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1"}, CLASSES),
        ({"0": "spam", "1": "ham"}, CLASSES),
        ({"0": "bad", "1": "good"}, ("bad", "good", "mixed")),
    ],
)
def test_a_classifier_with_other_labels_gets_a_new_output_layer(classifier, tmp_path, id2label, labels):
    folder = with_config(classifier, tmp_path / "other", id2label=id2label)
    plan = plan_weights(folder, "uri", Task.SEQUENCE_CLASSIFICATION, labels)
    assert plan.new == ("classifier.bias", "classifier.weight")
    assert not plan.has_head
    named = ", ".join(id2label.values())
    assert f"has other labels ({named}) than the data, so its output layer is randomly initialized" in plan.labels.note
    model = loaded(folder, labels=labels)
    assert model.classifier.bias.tolist() == [0.0] * len(labels)
    assert torch.equal(model.classifier.weight, loaded(folder, labels=labels).classifier.weight)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["b", "a"], ("a", "b"), (1, 0)),
        (["POSITIVE", "NEGATIVE"], ("negative", "positive"), (1, 0)),
        (["a", "A"], ("A", "a"), (1, 0)),
        (["a", "A"], ("a", "b"), None),
        (["a", "b", "c"], ("a", "b"), None),
        (["a", "a"], ("a", "b"), None),
    ],
)
def test_rows_are_matched_by_the_labels_names(theirs, ours, expected):
    assert matching_rows(theirs, ours) == expected
