"""Int8 exports load with transformers, and are compared with the trained model weight by weight."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_trainer.errors import ExportUnusableError
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.quantized_formats import write_quantized
from finetune_trainer.model.quantized_formats.int8 import Int8Export
from train_configs import train_config

LABELS = ("animal", "food")
URI = "s3://bucket/out/int8"
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])
FAMILIES = {
    "bert": Task.SEQUENCE_CLASSIFICATION,
    "llama-tied": Task.CAUSAL_LM,
    "gpt2": Task.CAUSAL_LM,
    "distilbert": Task.TOKEN_CLASSIFICATION,
    "mixtral": Task.CAUSAL_LM,
    "gpt_neox": Task.CAUSAL_LM,
}


def exported(family: str, folder: Path, dtype: Dtype = Dtype.FLOAT32) -> tuple[Any, Path, Path]:
    """Configuration, and the folders of the complete model and of Int8."""
    task = FAMILIES[family]
    labels = () if task is Task.CAUSAL_LM else LABELS
    base = tiny_models.save_tiny(family, folder / "base")
    config = train_config(
        model={"uri": f"file://{base}"},
        output={"formats": ["Merged", "Int8"]},
        prepared={"task": task, "labels": labels, "dtype": dtype},
    )
    model = load_model(base, task=task, labels=labels, dtype=dtype, seed=3)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    write_folder(ArtifactFormat.MERGED, model, weights, folder / "model", config=config, base=base)
    (folder / "int8").mkdir()
    write_quantized(ArtifactFormat.INT8, folder / "model", folder / "int8", config, scratch=folder)
    return config, folder / "model", folder / "int8"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    return exported("bert", tmp_path_factory.mktemp("exported"))


def check(config: Any, source: Path, folder: Path) -> Any:
    model = Int8Export().reload(folder, URI, config.prepared, "cpu")
    Int8Export().check(model, source, folder, URI, ())
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_an_int8_folder_is_close_to_the_trained_model_and_smaller(family: str, tmp_path: Path) -> None:
    config, source, folder = exported(family, tmp_path)
    model = check(config, source, folder)
    task = FAMILIES[family]
    trained = load_model(source, task=task, labels=config.prepared.labels, dtype=Dtype.FLOAT32, seed=1)
    assert not torch.equal(logits(model), logits(trained))
    torch.testing.assert_close(logits(model), logits(trained), atol=0.05, rtol=0.05)
    sizes = [(one / "model.safetensors").stat().st_size for one in (folder, source)]
    assert sizes[0] < sizes[1]
    stored = load_file(folder / "model.safetensors")
    kinds = {name: value.dtype for name, value in stored.items() if value.dim() > 1}
    heads = [kind for name, kind in kinds.items() if "classifier" in name or "lm_head" in name]
    assert torch.int8 in kinds.values()
    assert torch.int8 not in heads


def test_a_user_of_transformers_loads_the_folder_without_arguments(bert: tuple[Any, Path, Path]) -> None:
    folder = bert[-1]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert tuple(model.config.id2label.values()) == LABELS
    batch = AutoTokenizer.from_pretrained(folder)(["a good film"], return_tensors="pt")
    assert model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.shape == (1, 2)
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["load_in_8bit"]) == ("bitsandbytes", True)


@pytest.mark.parametrize("part", ["layer.1.output.dense.weight", "classifier.weight", "query.SCB", "LayerNorm.bias"])
def test_an_altered_value_is_found(part: str, bert: tuple[Any, Path, Path], tmp_path: Path) -> None:
    config, source, unchanged = bert
    folder = shutil.copytree(unchanged, tmp_path / "int8")
    path = folder / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith(part))
    flat = stored[name].flatten()
    flat[1] = 1 - flat[1] if flat.dtype is torch.int8 else flat[1] + 0.5
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(ExportUnusableError, match=f"{URI} is not the trained model: a weight of "):
        check(config, source, folder)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize(
    ("family", "part"),
    [("mixtral", "experts.1.w2.weight"), ("mixtral", "moe.gate.weight"), ("gpt_neox", "embed_out.weight")],
)
def test_an_altered_value_is_found_that_transformers_loads_under_another_name(
    family: str, part: str, dtype: Dtype, tmp_path: Path
) -> None:
    """Without quantization, but not compared by its name."""
    config, source, folder = exported(family, tmp_path, dtype)
    check(config, source, folder)
    path = folder / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith(part))
    stored[name].flatten()[1] += 0.5
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(ExportUnusableError, match=f"{URI} is not the trained model: [0-9]+ values with the sum "):
        check(config, source, folder)


def test_models_of_16_bits_are_compared_with_their_rounding(tmp_path: Path) -> None:
    config, source, folder = exported("bert", tmp_path, Dtype.BFLOAT16)
    check(config, source, folder)
