"""Which files of a repository or prefix belong to a model."""

import json

import pytest

from finetune_trainer.model.files import model_files

INDEX = "model.safetensors.index.json"


def selected(*names: str, index: object = None) -> list[str]:
    return model_files(names, lambda: json.dumps(index).encode())


def test_configuration_tokenizer_and_weights_belong_to_a_model() -> None:
    names = (
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "spiece.model",
        "tokenizer.json",
    )
    assert selected(*names, "README.md", "training_args.bin") == list(names)


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.safetensors",
        "../config.json",
        "a/../tokenizer.json",
        "/etc/tokenizer.model",
        "checkpoint-500/model.safetensors",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "onnx/config.json",
        "original/tokenizer.model",
        "pytorch_model.bin",
        "additional_chat_templates/../evil.jinja",
        "additional_chat_templates/notes.txt",
        "other/tool_use.jinja",
    ],
)
def test_other_files_do_not_belong_to_a_model(name: str) -> None:
    assert selected(name) == []


def test_sharded_weights_are_those_in_the_index() -> None:
    index = {"weight_map": {"a": "w-1.safetensors", "b": "w-2.safetensors", "c": "../w-3.safetensors", "d": 4}}
    names = (INDEX, "w-1.safetensors", "w-2.safetensors", "../w-3.safetensors", "w-4.safetensors")
    assert selected(*names, index=index) == [INDEX, "w-1.safetensors", "w-2.safetensors"]


@pytest.mark.parametrize("index", [None, [], {}, {"weight_map": ["w-1.safetensors"]}, "text"])
def test_a_damaged_index_has_no_weights(index: object) -> None:
    assert selected(INDEX, "w-1.safetensors", index=index) == [INDEX]
