"""Folders that are not usable models, and the reported reasons."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tiny_models
from finetune_api.v1alpha1 import Task
from finetune_trainer.errors import ModelUnusableError
from finetune_trainer.model.inspect import check_task, inspect_model
from finetune_trainer.model.tokenizer import load_tokenizer, tokenizer_digest

URI = "s3://bucket/base"
TENSORS = {
    "model.embed_tokens.weight": np.zeros((300, 8), dtype=np.float32),
    "model.layers.0.mlp.up_proj.weight": np.zeros((16, 8), dtype=np.float32),
    "model.norm.weight": np.zeros(8, dtype=np.float32),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def configured(folder: Path, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return inspect_model(folder, URI)


def test_sizes_are_read_only_from_headers(folder):
    facts = inspect_model(folder, URI)
    assert facts.parameters == 300 * 8 + 16 * 8 + 8
    assert facts.largest_parameter == 300 * 8
    assert facts.linear == (("model.layers.0.mlp.up_proj.weight", (16, 8)),)
    assert (facts.hidden_size, facts.layers, facts.vocabulary, facts.positions) == (8, 1, 300, 512)


def test_sharded_weights_are_counted_over_all_shards(folder):
    (folder / "model.safetensors").unlink()
    names = list(TENSORS)
    weight_map = {}
    for index, name in enumerate(names):
        save_file({name: TENSORS[name]}, folder / f"model-{index}.safetensors")
        weight_map[name] = f"model-{index}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert inspect_model(folder, URI).parameters == 300 * 8 + 16 * 8 + 8
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ModelUnusableError, match=r"lacks 1 of its 3 weight files: model-1\.safetensors"):
        inspect_model(folder, URI)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "s3://bucket/base has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "s3://bucket/base has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "s3://bucket/base has no weights"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "there is pytorch_model.bin, which is not loaded",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 40),
            "model.safetensors is not a complete safetensors file",
        ),
    ],
)
def test_an_error_has_the_missing_part_and_its_location(folder, broken, expected):
    broken(folder)
    with pytest.raises(ModelUnusableError) as caught:
        inspect_model(folder, URI)
    assert expected in str(caught.value)
    assert caught.value.advice


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "config.json has quantization_config (bitsandbytes, load_in_4bit)",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "config.json has quantization_config (gptq)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "config.json has quantization_config (fp8)"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "text_config.quantization_config (awq)"),
        ({"compression_config": {"format": "int-quantized"}}, "compression_config (no quant_method)"),
    ],
)
def test_a_quantized_base_is_rejected_with_the_key_of_its_configuration(folder, changes, expected):
    with pytest.raises(ModelUnusableError) as caught:
        configured(folder, **changes)
    assert expected in str(caught.value)
    assert "use the model without quantization" in caught.value.advice


def test_an_empty_quantization_block_is_ignored(folder):
    assert configured(folder, quantization_config=None, text_config={}).parameters > 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_weights_that_are_not_floating_point_are_rejected(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(TENSORS | {name: np.zeros((16, 8), dtype=dtype)}, folder / "model.safetensors")
    with pytest.raises(ModelUnusableError, match=f"{name} in model.safetensors is stored as [IU]"):
        inspect_model(folder, URI)


GPTQ = {
    "model.layers.0.mlp.up_proj.qweight": np.zeros((1, 16), dtype=np.int32),
    "model.layers.0.mlp.up_proj.qzeros": np.zeros((1, 2), dtype=np.int32),
    "model.layers.0.mlp.up_proj.scales": np.zeros((1, 16), dtype=np.float16),
}


@pytest.mark.parametrize("settings", ["", "quantize_config.json", "quant_config.json"])
def test_a_quantized_base_is_rejected_by_the_names_of_its_tensors(folder, settings):
    if settings:
        (folder / settings).write_text('{"bits": 4}')
    plain = {name: tensor for name, tensor in TENSORS.items() if "up_proj" not in name}
    save_file(plain | GPTQ, folder / "model.safetensors")
    with pytest.raises(ModelUnusableError) as caught:
        inspect_model(folder, URI)
    assert "is quantized" in str(caught.value)
    assert "model.layers.0.mlp.up_proj.qweight in model.safetensors is a packed weight" in str(caught.value)
    assert "use the model without quantization" in caught.value.advice


@pytest.mark.parametrize("settings", ["quantize_config.json", "quant_config.json"])
def test_a_quantized_base_with_unusual_weight_files_is_rejected_by_its_settings(folder, settings):
    (folder / settings).write_text('{"bits": 4}')
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    with pytest.raises(ModelUnusableError, match=f"is quantized, .*: it has {settings} and no model.safetensors"):
        inspect_model(folder, URI)


def test_quantization_settings_next_to_plain_weights_are_ignored(folder):
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    assert inspect_model(folder, URI).parameters > 0


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://unsloth/SmolLM2-135M-Instruct-bnb-4bit", "hf://unsloth/SmolLM2-135M-Instruct)"),
        ("hf://TheBloke/Mistral-7B-v0.1-GPTQ", "hf://TheBloke/Mistral-7B-v0.1)"),
        ("s3://bucket/llama-3-8b-AWQ-INT4/", "s3://bucket/llama-3-8b)"),
    ],
)
def test_the_model_without_quantization_is_guessed_from_the_name(folder, uri, expected):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ModelUnusableError) as caught:
        inspect_model(folder, uri)
    assert f"(possibly {expected}" in caught.value.advice


@pytest.mark.parametrize(
    ("changes", "task", "expected"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, Task.CAUSAL_LM, "is an encoder"),
        ({"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"]}, Task.CAUSAL_LM, "is an encoder"),
        (
            {"model_type": "t5", "architectures": ["T5Model"], "is_encoder_decoder": True},
            Task.CAUSAL_LM,
            "is an encoder-decoder",
        ),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, Task.SEQUENCE_CLASSIFICATION, "no SequenceClassif"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, Task.MASKED_LM, "no MaskedLM head"),
        ({"model_type": "llama"}, Task.MASKED_LM, "is a decoder"),
        (
            {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
            Task.MASKED_LM,
            "is a decoder",
        ),
        (
            {"model_type": "bart", "architectures": ["BartModel"], "is_encoder_decoder": True},
            Task.MASKED_LM,
            "is an encoder-decoder",
        ),
        ({"model_type": "made-up", "architectures": []}, Task.CAUSAL_LM, "no model of this type"),
    ],
)
def test_a_model_that_does_not_support_the_task_is_rejected(folder, changes, task, expected):
    with pytest.raises(ModelUnusableError, match=f"model_type {changes['model_type']}") as caught:
        check_task(configured(folder, **changes), URI, task)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, Task.CAUSAL_LM),
        ({}, Task.SEQUENCE_CLASSIFICATION),
        ({"model_type": "bert", "architectures": ["BertModel"]}, Task.SEQUENCE_CLASSIFICATION),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}, Task.CAUSAL_LM),
        ({"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}, Task.MASKED_LM),
        ({"model_type": "bert", "architectures": ["BertModel"]}, Task.MASKED_LM),
    ],
)
def test_a_model_that_supports_the_task_is_accepted(folder, changes, task):
    check_task(configured(folder, **changes), URI, task)


@pytest.mark.parametrize(
    ("changes", "task", "advised"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, Task.CAUSAL_LM, "spec.model.task: MaskedLM"),
        ({}, Task.MASKED_LM, "remove spec.model.task"),
    ],
)
def test_an_encoder_is_advised_to_mask_tokens_and_a_decoder_not_to(folder, changes, task, advised):
    with pytest.raises(ModelUnusableError) as caught:
        check_task(configured(folder, **changes), URI, task)
    assert advised in caught.value.advice


def test_multimodal_models_have_their_sizes_in_a_nested_block(folder):
    facts = configured(folder, text_config={"hidden_size": 64, "max_position_embeddings": 99})
    assert (facts.hidden_size, facts.positions) == (64, 99)


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(tmp_path):
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.pad_token, loaded.padding_side) == ("</s>", "right")


def test_a_damaged_tokenizer_is_an_unusable_model(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelUnusableError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_the_digest_depends_on_the_tokenizer_and_not_on_the_weights(folder):
    before = tokenizer_digest(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    assert tokenizer_digest(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_digest(folder) != before
