"""Exported folders give the outputs of the trained model with any loader."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CanineTokenizer,
)

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Lora, Task
from finetune_trainer.errors import BadConfigError, ExportUnusableError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.portable import base_name, copy_tokenizer, with_older_tokenizer_names
from finetune_trainer.tasks import TASKS
from train_configs import train_config

MERGED, ADAPTER = ArtifactFormat.MERGED, ArtifactFormat.ADAPTER
LABELS = ("animal", "food")
CLASSIFIERS = ("bert", "albert", "distilbert", "roberta", "llama", "gpt2")
DECODERS = ("llama", "llama-tied", "gpt2", "gpt_neox", "qwen2", "gemma")
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])


def adapted(model: Any, lora: Any, task: Task) -> Any:
    method: Any = METHODS["lora"]
    return method.adapted(model, lora, TASKS[task])


def check_adapter(base: Path, lora: Lora, task: Task) -> None:
    METHODS["lora"].check(base, lora, TASKS[task])


def load(folder: Path, task: Task, dtype: Dtype = Dtype.FLOAT32) -> Any:
    labels = LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()
    return load_model(folder, task=task, labels=labels, dtype=dtype, seed=3)


def export_both(base: Path, task: Task, folder: Path, order: tuple[ArtifactFormat, ...]) -> Any:
    """A LoRA model whose adapter is not zero, exported in both formats; returns it."""
    uri = f"file://{base}"
    config = train_config(
        model={"uri": uri},
        method={"lora": {"rank": 4}},
        output={"formats": [artifact.value for artifact in order]},
        prepared={"task": task, "labels": LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()},
    )
    torch.manual_seed(1)
    model = adapted(load(base, task), config.spec.method.lora, task)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for artifact in order:
        write_folder(artifact, model, weights, folder / artifact.value, config=config, base=base)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check_both(base: Path, task: Task, folder: Path, order: tuple[ArtifactFormat, ...]) -> None:
    trained = logits(export_both(base, task, folder, order))
    model_class = AutoModelForSequenceClassification if task is Task.SEQUENCE_CLASSIFICATION else AutoModelForCausalLM
    merged, found = model_class.from_pretrained(folder / MERGED.value, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    torch.testing.assert_close(logits(merged), trained, atol=1e-3, rtol=1e-3)
    if task is Task.SEQUENCE_CLASSIFICATION:
        assert tuple(merged.config.id2label.values()) == LABELS
        # Another seed: the adapter must contain what the base model lacks.
        torch.manual_seed(99)
        config = AutoConfig.from_pretrained(folder / ADAPTER.value)
        assert tuple(config.id2label.values()) == LABELS
        base_model = model_class.from_pretrained(base, config=config)
    else:
        base_model = model_class.from_pretrained(base)
    untrained = logits(base_model)
    loaded = PeftModel.from_pretrained(base_model, str(folder / ADAPTER.value))
    torch.testing.assert_close(logits(loaded), trained, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(untrained, trained, atol=1e-2), "an adapter that changes nothing would pass"


@pytest.mark.parametrize("damaged", [MERGED, ADAPTER])
def test_a_file_with_another_weight_than_the_trained_one_is_found_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: ArtifactFormat
) -> None:
    """As a defect of the library that writes it would, in a weight that hardly changes the loss."""
    module = transformers.modeling_utils if damaged is MERGED else peft.peft_model

    def write_wrongly(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        name = sorted(weights)[-1]
        save_file(weights | {name: 1.001 * weights[name]}, path, metadata)

    monkeypatch.setattr(module, "safe_save_file", write_wrongly)
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    with pytest.raises(ExportUnusableError, match=f"in .*/{damaged.value} is not the weight that was trained"):
        export_both(base, Task.CAUSAL_LM, tmp_path, (damaged,))


def test_an_adapter_has_its_own_labels_for_any_labels_of_its_base_model(tmp_path: Path) -> None:
    torch.manual_seed(2)
    path = tiny_models.save_tiny("bert", tmp_path / "encoder")
    base = AutoModelForSequenceClassification.from_pretrained(path, id2label=dict(enumerate(reversed(LABELS))))
    base.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(path / name, tmp_path / "base" / name)
    check_both(tmp_path / "base", Task.SEQUENCE_CLASSIFICATION, tmp_path, (ADAPTER, MERGED))


@pytest.mark.parametrize("family", DECODERS)
def test_merged_model_and_adapter_of_a_decoder_are_the_trained_model(family: str, tmp_path: Path) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    check_both(base, Task.CAUSAL_LM, tmp_path, (MERGED, ADAPTER))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_merged_model_and_adapter_of_a_classifier_are_the_trained_model(family: str, tmp_path: Path) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    check_both(base, Task.SEQUENCE_CLASSIFICATION, tmp_path, (ADAPTER, MERGED))


def test_an_adapter_contains_a_pooler_that_its_base_model_lacks(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("bert-without-pooler", tmp_path / "base")
    check_both(base, Task.SEQUENCE_CLASSIFICATION, tmp_path, (MERGED, ADAPTER))
    assert any("pooler" in name for name in tensors(tmp_path / ADAPTER.value))


@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("llama-tied", ("q_proj", "lm_head"), "lm_head"),
        ("llama-tied", ("q_proj", "embed_tokens"), "embed_tokens"),
        ("llama-tied", ("model.embed_tokens",), "embed_tokens"),
        ("gpt2", ("c_attn", "wte"), "wte"),
        ("gpt2", ("lm_head",), "lm_head"),
    ],
)
def test_an_adapter_on_a_matrix_that_two_layers_share_is_rejected(
    family: str, targets: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    for refuse in (
        lambda: check_adapter(base, Lora(target_modules=targets), Task.CAUSAL_LM),
        lambda: adapted(load(base, Task.CAUSAL_LM), Lora(target_modules=targets), Task.CAUSAL_LM),
    ):
        with pytest.raises(BadConfigError, match=f"must not name {named}: .* shares its matrix with") as error:
            refuse()
        assert named not in error.value.advice


def test_the_advice_for_a_shared_matrix_keeps_the_other_targets(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama-tied", tmp_path / "base")
    with pytest.raises(BadConfigError) as error:
        check_adapter(base, Lora(target_modules=("q_proj", "lm_head")), Task.CAUSAL_LM)
    assert "write spec.method.lora.targetModules: [q_proj]" in error.value.advice


@pytest.mark.parametrize("targets", [("lm_head", "q_proj"), ("embed_tokens",)])
def test_all_layers_of_an_untied_model_can_be_adapted(targets: tuple[str, ...], tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    check_adapter(base, Lora(target_modules=targets), Task.CAUSAL_LM)


@pytest.mark.parametrize("family", DECODERS)
def test_without_targets_no_shared_matrix_is_adapted(family: str, tmp_path: Path) -> None:
    check_adapter(tiny_models.save_tiny(family, tmp_path / "base"), Lora(), Task.CAUSAL_LM)


def test_targets_that_the_model_lacks_are_rejected_without_loading_weights(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    with pytest.raises(BadConfigError, match="cannot be applied to LlamaForCausalLM") as error:
        check_adapter(base, Lora(target_modules=("query",)), Task.CAUSAL_LM)
    assert "q_proj" in error.value.advice


def write_whole(base: Path, folder: Path, task: Task = Task.CAUSAL_LM) -> Path:
    """A full fine-tune without steps, exported."""
    model = load(base, task)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    prepared = {"task": task, "labels": LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()}
    config = train_config(model={"uri": f"file://{base}"}, prepared=prepared)
    write_folder(MERGED, model, weights, folder / "model", config=config, base=base)
    return folder / "model"


ROPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"rope_theta": 500000.0}, {"rope_theta": 500000.0}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_theta": 250000.0,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_theta": 250000.0},
    ),
    ("qwen2", {"rope_theta": 1000000.0}, {"rope_theta": 1000000.0}),
    ("gpt_neox", {"rotary_emb_base": 5000, "rotary_pct": 0.5}, {"rotary_emb_base": 5000, "rotary_pct": 0.5}),
]


@pytest.mark.parametrize(("family", "written", "expected"), ROPES)
def test_older_readers_find_rotary_embeddings_and_dtype_under_their_names(
    family: str, written: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    path = base / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    path.write_text(json.dumps(config | written))
    folder = write_whole(base, tmp_path)
    found = json.loads((folder / "config.json").read_text())
    assert {name: found.get(name) for name in expected} == expected
    assert found["torch_dtype"] == found["dtype"] == "float32"
    scaled = written.get("rope_parameters", {})
    if scaled:
        assert found["rope_scaling"]["rope_type"] == "llama3"
        assert found["rope_scaling"]["factor"] == 8.0
    assert AutoConfig.from_pretrained(folder).rope_parameters == AutoConfig.from_pretrained(base).rope_parameters


def test_tokenizer_and_generation_files_of_the_base_model_are_unchanged(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|im_start|>"]}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": True}))
    folder = write_whole(base, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name


def test_a_tokenizer_that_transformers_5_has_saved_is_exported_under_names_that_version_4_reads(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|new|>"]})
    tokenizer.chat_template = tiny_models.CHATML
    tokenizer.save_pretrained(base)
    saved = json.loads((base / "tokenizer_config.json").read_text())
    assert (saved["tokenizer_class"], type(saved["extra_special_tokens"])) == ("TokenizersBackend", list)
    folder = write_whole(base, tmp_path)
    found = json.loads((folder / "tokenizer_config.json").read_text())
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found["additional_special_tokens"] == saved["extra_special_tokens"]
    assert "extra_special_tokens" not in found
    before, after = (AutoTokenizer.from_pretrained(path) for path in (base, folder))
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    assert after.extra_special_tokens == before.extra_special_tokens
    assert after.all_special_ids == before.all_special_ids


def test_a_tokenizer_without_a_fast_backend_is_exported(tmp_path: Path) -> None:
    base = tmp_path / "base"
    CanineTokenizer(extra_special_tokens=["<|new|>"]).save_pretrained(base)
    assert "extra_special_tokens" in json.loads((base / "tokenizer_config.json").read_text())
    copy_tokenizer(base, tmp_path)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path))
    assert not hasattr(before, "backend_tokenizer")
    assert after.all_special_ids == before.all_special_ids
    assert after("a <|new|> b")["input_ids"] == before("a <|new|> b")["input_ids"]


def test_names_of_tokenizers_that_are_the_same_in_both_versions_are_kept() -> None:
    named = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<image>"}}
    assert with_older_tokenizer_names(named) == named
    both = {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]}
    assert with_older_tokenizer_names(both) == {"additional_special_tokens": ["<b>"]}


def test_a_classifier_whose_base_model_has_no_pad_token_gets_one(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("gpt2", tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = write_whole(base, tmp_path, Task.SEQUENCE_CLASSIFICATION)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["one", "one two three"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 2)


def test_a_tied_model_is_exported_tied(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama-tied", tmp_path / "base")
    folder = write_whole(base, tmp_path)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert tensors(folder).keys() == tensors(base).keys()


@pytest.mark.parametrize(
    ("uri", "name", "revision"),
    [
        ("hf://org/name", "org/name", None),
        ("hf://org/name@abc123", "org/name", "abc123"),
        ("hf://gpt2@main", "gpt2", "main"),
        ("s3://bucket/models/base@2", "s3://bucket/models/base@2", None),
        ("file:///models/base", "/models/base", None),
    ],
)
def test_an_adapter_names_its_base_model_and_revision_separately(uri: str, name: str, revision: str | None) -> None:
    assert base_name(uri) == (name, revision)


@pytest.mark.parametrize(("commit", "revision"), [("", "v2"), ("c0ffee", "c0ffee")])
def test_an_adapter_folder_has_the_required_base_model_and_revision(tmp_path: Path, commit: str, revision: str) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    prepared = {"task": Task.CAUSAL_LM, "labels": (), "model_revision": commit}
    config = train_config(model={"uri": "hf://org/name@v2"}, method={"lora": {}}, prepared=prepared)
    model = adapted(load(base, Task.CAUSAL_LM), config.spec.method.lora, Task.CAUSAL_LM)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    write_folder(ADAPTER, model, weights, tmp_path / "adapter", config=config, base=base)
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("org/name", revision)
