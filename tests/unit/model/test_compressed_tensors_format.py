"""CompressedTensors folders have the layout of vLLM, load with transformers, and are rounded to the nearest level."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, CompressedTensorsScheme, Dtype, Task
from finetune_trainer.errors import BadConfigError, ExportUnusableError
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import TORCH_DTYPES, load_model
from finetune_trainer.model.quantized_formats import check_quantized_exports, quantized_exports, write_quantized
from finetune_trainer.model.weights import plan_weights
from train_configs import train_config

LABELS = ("animal", "food")
URI = "s3://bucket/out/compressed-tensors"
W8A16, W4A16 = CompressedTensorsScheme.W8A16, CompressedTensorsScheme.W4A16
LEVELS = {W8A16: 256, W4A16: 16}
BITS = {W8A16: 8, W4A16: 4}
GROUP = 128
TASKS = {"bert": Task.SEQUENCE_CLASSIFICATION, "albert": Task.TOKEN_CLASSIFICATION}
"""Families that are not language models."""
CASES = (
    ("llama-tied", W4A16, Dtype.FLOAT32),
    ("llama", W8A16, Dtype.BFLOAT16),
    ("gpt_neox", W4A16, Dtype.FLOAT16),
    ("bert", W4A16, Dtype.BFLOAT16),
    ("albert", W8A16, Dtype.FLOAT32),
)


class Folders(NamedTuple):
    """A complete model and its export."""

    config: Any
    source: Path
    folder: Path


class Case(NamedTuple):
    """An export of CASES."""

    family: str
    scheme: CompressedTensorsScheme
    dtype: Dtype
    folders: Folders


def config_of(base: Path, family: str, scheme: CompressedTensorsScheme, dtype: Dtype = Dtype.FLOAT32) -> Any:
    task = TASKS.get(family, Task.CAUSAL_LM)
    return train_config(
        model={"uri": f"file://{base}"},
        output={"formats": ["Merged", "CompressedTensors"], "compressedTensors": {"scheme": scheme}},
        prepared={"task": task, "labels": LABELS if family in TASKS else (), "dtype": dtype},
    )


def check_base(base: Path, config: Any) -> None:
    """What the prepare stage refuses."""
    plan = plan_weights(base, config.spec.model.uri, config.prepared.task, config.prepared.labels)
    check_quantized_exports(config.spec, base, plan, base / "scratch")


def write(config: Any, source: Path) -> Folders:
    folder = source.parent / "compressed-tensors"
    folder.mkdir()
    write_quantized(ArtifactFormat.COMPRESSED_TENSORS, source, folder, config, scratch=source.parent)
    return Folders(config, source, folder)


def exported(
    root: Path, family: str = "bert", scheme: CompressedTensorsScheme = W8A16, dtype: Dtype = Dtype.FLOAT32
) -> Folders:
    base = tiny_models.save_tiny(family, root / "base", width=GROUP)
    config = config_of(base, family, scheme, dtype)
    check_base(base, config)
    model = load_model(base, task=config.prepared.task, labels=config.prepared.labels, dtype=dtype, seed=3)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    write_folder(ArtifactFormat.MERGED, model, weights, root / "model", config=config, base=base)
    return write(config, root / "model")


def check(folders: Folders) -> Any:
    """Load and compare the export as the evaluate stage does."""
    (export,) = quantized_exports(folders.config.spec)
    model = export.reload(folders.folder, URI, folders.config.prepared, "cpu")
    export.check(model, folders.source, folders.folder, URI, ())
    return model


def nearest(weight: torch.Tensor, scheme: CompressedTensorsScheme) -> torch.Tensor:
    """The nearest of the levels -n .. n-1 times a scale for which n-0.5 is the largest magnitude."""
    half = LEVELS[scheme] // 2
    groups = weight.float().unflatten(-1, (-1, GROUP) if scheme is W4A16 else (1, -1))
    scale = (groups.abs().amax(-1, keepdim=True) / (half - 0.5)).to(weight.dtype).float()
    return ((groups / scale).round().clamp(-half, half - 1) * scale).flatten(-2).to(weight.dtype)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return exported(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return exported(tmp_path_factory.mktemp("llama"), "llama-tied", W4A16)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(*request.param, exported(tmp_path_factory.mktemp("case"), *request.param))


def test_linear_layers_are_rounded_to_the_nearest_level_and_the_rest_is_unchanged(case: Case) -> None:
    folders, scheme = case.folders, case.scheme
    found, trained = check(folders).state_dict(), tensors(folders.source)
    stored = tensors(folders.folder)
    packed = {name.removesuffix("_packed") for name in stored if name.endswith("_packed")}
    assert packed
    # transformers has another name for the head of GPT-NeoX than its files.
    renamed = {"embed_out.weight": "lm_head.weight"} if case.family == "gpt_neox" else {}
    for stored_name, weight in trained.items():
        name = renamed.get(stored_name, stored_name)
        assert weight.dtype is TORCH_DTYPES[case.dtype]
        torch.testing.assert_close(
            found[name], nearest(weight, scheme) if name in packed else weight, rtol=0, atol=0, msg=name
        )
    assert sum(value.nbytes for value in stored.values()) < sum(value.nbytes for value in trained.values())


def test_the_folder_has_the_layout_that_vllm_reads(case: Case) -> None:
    family, scheme, dtype, folders = case
    config = json.loads((folders.folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config == json.loads((folders.source / "config.json").read_text())
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "pack-quantized")
    assert settings["quantization_status"] == "compressed"
    (group,) = settings["config_groups"].values()
    assert (group["targets"], group["input_activations"], group["output_activations"]) == (["Linear"], None, None)
    strategy = ("channel", None) if scheme is W8A16 else ("group", GROUP)
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == strategy
    assert (group["weights"]["num_bits"], group["weights"]["symmetric"]) == (BITS[scheme], True)

    stored, trained = tensors(folders.folder), tensors(folders.source)
    packed = {name.removesuffix(".weight_packed") for name in stored if name.endswith("_packed")}
    model = load_model(
        folders.source, task=folders.config.prepared.task, labels=folders.config.prepared.labels, dtype=dtype, seed=1
    )
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert packed == linear - {*settings["ignore"]}
    head = "lm_head" if family.startswith("llama") else "embed_out" if family == "gpt_neox" else "classifier"
    assert head in settings["ignore"]
    assert not packed & {*settings["ignore"]}
    for layer in packed:
        rows, columns = trained[f"{layer}.weight"].shape
        assert stored[f"{layer}.weight_packed"].dtype is torch.int32
        assert stored[f"{layer}.weight_packed"].shape == (rows, columns * BITS[scheme] // 32)
        assert stored[f"{layer}.weight_scale"].dtype is TORCH_DTYPES[dtype]
        assert stored[f"{layer}.weight_scale"].shape == (rows, 1 if scheme is W8A16 else columns // GROUP)
        assert stored[f"{layer}.weight_shape"].tolist() == [rows, columns]
        assert f"{layer}.weight" not in stored


_LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
for kind, folder in ((AutoModelForCausalLM, sys.argv[1]), (AutoModelForSequenceClassification, sys.argv[2])):
    model = kind.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(["a good film"], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.save([batch["input_ids"], logits, model.config.id2label], f"{folder}/outputs.pt")
"""


def test_a_user_of_transformers_loads_the_folders_without_arguments(
    llama: Folders, bert: Folders, tmp_path: Path
) -> None:
    copies = [shutil.copytree(one.folder, tmp_path / name) for name, one in (("llama", llama), ("bert", bert))]
    subprocess.run([sys.executable, "-c", _LOAD, *map(str, copies)], check=True)
    for folders, copy in zip((llama, bert), copies, strict=True):
        ids, logits, labels = torch.load(copy / "outputs.pt")
        with torch.no_grad():
            expected = check(folders)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert tuple(labels.values()) == LABELS


@pytest.mark.parametrize("part", ["query.weight_packed", "key.weight_scale", "LayerNorm.bias", "classifier.weight"])
def test_an_altered_value_is_found(part: str, bert: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(bert.folder, tmp_path / "folder")
    path = folder / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith(part))
    flat = stored[name].flatten()
    flat[1] = flat[1] ^ 1 if flat.dtype is torch.int32 else flat[1] * 1.01 + 1e-4
    save_file(stored | {name: flat.view(stored[name].shape)}, path, metadata={"format": "pt"})
    with pytest.raises(ExportUnusableError, match=f"{URI} is not the trained model: a weight of "):
        check(bert._replace(folder=folder))


@pytest.mark.parametrize("part", ["query.weight_packed", "query.weight_scale", "query.weight_shape", "query.bias"])
def test_a_folder_without_a_part_of_a_layer_is_rejected(part: str, bert: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(bert.folder, tmp_path / "folder")
    path = folder / "model.safetensors"
    stored = load_file(path)
    del stored[next(name for name in stored if name.endswith(part))]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(ExportUnusableError, match=URI):
        check(bert._replace(folder=folder))


def test_a_model_of_several_files_has_an_index(llama: Folders, tmp_path: Path) -> None:
    config = llama.config
    model = load_model(llama.source, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1)
    source = shutil.copytree(llama.source, tmp_path / "model")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="400KB")
    folders = write(config, source)
    check(folders)
    index = json.loads((folders.folder / "model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) > 1
    assert index["weight_map"].keys() == tensors(llama.folder).keys()
    assert all(torch.equal(value, tensors(llama.folder)[name]) for name, value in tensors(folders.folder).items())


def test_a_row_of_zeros_stays_zero(bert: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(bert.source, tmp_path / "model")
    stored = load_file(source / "model.safetensors")
    name = next(name for name in stored if name.endswith("query.weight"))
    stored[name][3] = 0
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    assert not check(write(bert.config, source)).state_dict()[name][3].any()


REFUSED = {
    "matrices in another order": ("gpt2", W8A16, "formats must not have CompressedTensors for .* has no linear layers"),
    "a mixture of experts": ("mixtral", W8A16, "CompressedTensors for .* has matrices outside of linear layers: "),
    "rows that are not a multiple of the group": (
        "llama",
        W4A16,
        r"spec.output.compressedTensors.scheme must not be W4A16 for .*: 14 of 14 linear layers have a number of "
        "inputs that is not a multiple of 128, first model.layers.0.self_attn.q_proj with 32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_base_model_that_the_format_cannot_hold_is_refused_with_a_remedy(case: str, tmp_path: Path) -> None:
    family, scheme, message = REFUSED[case]
    folder = tmp_path / "base"
    base = tiny_models.save_tiny(family, folder)
    with pytest.raises(BadConfigError, match=message) as error:
        check_base(base, config_of(base, family, scheme))
    assert "use another base model" in error.value.advice
