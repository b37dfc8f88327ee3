"""GGUF files are the trained model for the reader of transformers, and any other file is rejected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import tiny_models
from finetune_api.run_layout import gguf_file
from finetune_api.v1alpha1 import GgufType, Task
from finetune_trainer.errors import BadConfigError, ExportUnusableError
from finetune_trainer.model import gguf_files
from finetune_trainer.model.gguf_files import check_model, write_gguf
from finetune_trainer.model.quantized_formats.gguf import GgufExport
from finetune_trainer.model.stored_weights import StoredWeights
from train_configs import train_config

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen2-tied", "qwen3-tied")
URI = "s3://bucket/out/gguf/model.gguf"
PREPARED: Any = train_config(
    data={"format": "Text"}, output={"formats": ["GGUF"]}, prepared={"task": Task.CAUSAL_LM, "labels": ()}
).prepared
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])
TEXTS = ("a good film", "the capital 12 of France?")


def source_of(family: str, folder: Path, **settings: Any) -> Path:
    """A tiny model with a chat template, and biases and norms that are not zeros and ones."""
    base = tiny_models.save_tiny(family, folder / family)
    model = AutoModelForCausalLM.from_pretrained(base)
    if family.startswith("qwen"):  # transformers adds <|endoftext|> to their tokenizers
        model.resize_token_embeddings(model.config.vocab_size + 3)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(base)
    (base / "chat_template.jinja").write_text(tiny_models.CHATML)
    return base


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_of("llama", tmp_path_factory.mktemp("models"))


def written(source: Path, folder: Path, kind: GgufType = GgufType.Q8_0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / gguf_file(kind)
    write_gguf(source, path, kind, uri="hf://base", name="a job r0001")
    return path


def check(source: Path, path: Path, kind: GgufType = GgufType.Q8_0) -> Any:
    """Load the file as the evaluate stage does, and compare it."""
    export = GgufExport(kind)
    model = export.reload(path.parent, URI, PREPARED, "cpu")
    export.check(model, source, path.parent, URI, TEXTS)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_16_bits_has_the_outputs_of_the_trained_model(family: str, tmp_path: Path) -> None:
    source = source_of(family, tmp_path)
    check_model(source, "hf://base", tmp_path)
    model = check(source, written(source, tmp_path / "out", GgufType.F16), GgufType.F16)
    trained = AutoModelForCausalLM.from_pretrained(source)
    torch.testing.assert_close(logits(model), logits(trained), atol=2e-2, rtol=2e-2)
    assert model.config.tie_word_embeddings == trained.config.tie_word_embeddings


@pytest.mark.parametrize("kind", GgufType)
def test_every_type_is_as_close_as_its_bits_allow_and_smaller_than_the_next(
    llama: Path, kind: GgufType, tmp_path: Path
) -> None:
    path = written(llama, tmp_path, kind)
    check(llama, path, kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    matrix = tensors["blk.0.attn_q.weight"]
    assert matrix.tensor_type.name == kind
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    wanted = kind if kind in ("F16", "BF16") else "Q8_0"
    assert {tensors[name].tensor_type.name for name in ("token_embd.weight", "output.weight")} == {wanted}
    bits = {"F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_0": 5.5, "Q4_0": 4.5}
    assert 8 * matrix.n_bytes / matrix.n_elements == bits[kind]


def test_a_user_of_transformers_gets_model_tokenizer_and_chat_template_from_the_file_alone(
    llama: Path, tmp_path: Path
) -> None:
    path = written(llama, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    read, original = (
        AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
        AutoTokenizer.from_pretrained(llama),
    )
    chat = [{"role": "user", "content": "what is the capital of France?"}]
    assert read.apply_chat_template(chat) == original.apply_chat_template(chat)
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<s>", "</s>", "<pad>")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
    )
    assert model.config.eos_token_id == original.eos_token_id


@pytest.mark.parametrize(("family", "wrong"), [("llama", "qwen2"), ("qwen2", "llama")])
def test_queries_and_keys_in_the_order_of_another_architecture_are_found(
    family: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(family, tmp_path)
    in_file_order = gguf_files._in_file_order

    def other_order(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
        config.model_type, own = wrong, config.model_type
        try:
            return in_file_order(name, weight, config)
        finally:
            config.model_type = own

    check(source, written(source, tmp_path / "right"))
    monkeypatch.setattr(gguf_files, "_in_file_order", other_order)
    path = written(source, tmp_path / "wrong")
    with pytest.raises(ExportUnusableError, match=r"a weight of model\.layers\.0\.self_attn\.[kq]_proj\.\w+ differs"):
        check(source, path)


@pytest.mark.parametrize("kind", GgufType)
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight"])
def test_an_altered_byte_of_a_weight_is_found(llama: Path, kind: GgufType, name: str, tmp_path: Path) -> None:
    path = written(llama, tmp_path, kind)
    (tensor,) = (entry for entry in gguf.GGUFReader(path).tensors if entry.name == name)
    start = int(tensor.data_offset)
    del tensor
    content = bytearray(path.read_bytes())
    content[start + 3] ^= 0x48
    path.write_bytes(content)
    with pytest.raises(ExportUnusableError, match=f"{URI} is not the trained model: a weight of "):
        check(llama, path, kind)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "cannot be reloaded"),
        (lambda content: content[:40], "cannot be reloaded"),
        (lambda _: b"", "cannot be reloaded"),
        (replaced(b"GGUF", b"GGML"), "cannot be reloaded"),
        (replaced(b"general.architecture", b"general.architectura"), "cannot be reloaded"),
        (replaced("\u0120good".encode(), "\u0120goxd".encode()), "tokenizer"),
        (replaced(b"gpt-2", b"gpt-9"), r"tokenizer\.ggml\.pre is gpt-9"),
        (replaced(b"<|im_start|>{{", b"<|im_stort|>{{"), "it has another chat template"),
        (replaced(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), "lacks weights of its own architecture"),
    ],
)
def test_a_damaged_file_is_rejected(
    llama: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = written(llama, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ExportUnusableError, match=message) as error:
        check(llama, path)
    assert URI in str(error.value)


def test_rows_that_cannot_be_divided_into_blocks_are_stored_in_16_bits(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    source = source_of("llama", tmp_path)
    config = LlamaConfig.from_pretrained(source)
    config.intermediate_size = 40
    LlamaForCausalLM(config).save_pretrained(source)
    path = written(source, tmp_path / "out", GgufType.Q4_0)
    check(source, path, GgufType.Q4_0)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q4_0")


def test_rows_of_the_embedding_without_a_token_are_named(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(source)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 6)
    model.save_pretrained(source)
    check_model(source, "hf://base", tmp_path)
    path = written(source, tmp_path / "out")
    check(source, path)
    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    assert tokens[rows:] == [f"[PAD{row}]" for row in range(rows, rows + 6)]


def test_very_small_weights_are_within_the_rounding(tmp_path: Path) -> None:
    """Their scale is not exact in 16 bits, or zero."""
    source = source_of("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for row, scale in enumerate((0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)):
            model.model.embed_tokens.weight[row].mul_(scale)
    model.save_pretrained(source)
    for kind in GgufType:
        check(source, written(source, tmp_path / "out", kind), kind)


# Models and tokenizers that cannot be written


def change_tokenizer(change: Callable[[Tokenizer], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        backend = Tokenizer.from_file(str(path))
        change(backend)
        backend.save(str(path))

    return apply


def change_config(**fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def split_by(regex: str) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


SCALED = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("gpt2", lambda _: None, "its model_type is gpt2"),
    ("gemma", lambda _: None, "its model_type is gemma"),
    ("gpt_neox", lambda _: None, "its model_type is gpt_neox"),
    ("llama", change_config(rope_parameters=SCALED), "a file cannot state rope_parameters"),
    ("llama", change_config(attention_bias=True), "a file cannot state attention_bias: True"),
    ("llama", change_config(mlp_bias=True), "a file cannot state mlp_bias"),
    ("llama", change_config(hidden_act="gelu"), "a file cannot state hidden_act: gelu"),
    (
        "qwen2",
        change_config(vocab_size=350, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "a file cannot state",
    ),
    ("qwen3", change_config(head_dim=64), "a file cannot state head_dim: 64 in its config.json, 128 when read"),
    ("llama", change_config(vocab_size=300), "its tokenizer has the token id .*, and its embedding has 300 rows"),
    (
        "llama",
        change_tokenizer(lambda one: setattr(one, "normalizer", normalizers.Lowercase())),
        "normalizer Lowercase",
    ),
    ("llama", change_tokenizer(lambda one: setattr(one, "pre_tokenizer", split_by("a+"))), "has no name for its pre-"),
    ("llama", change_tokenizer(lambda one: setattr(one.model, "ignore_merges", True)), "has ignore_merges True"),
    (
        "llama",
        change_tokenizer(
            lambda one: setattr(
                one,
                "post_processor",
                processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)]),
            )
        ),
        "adds other tokens than a begin and an end token",
    ),
    ("llama", change_tokenizer(lambda one: one.add_tokens([" new word"])), "it has other tokens for|has the token id"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_a_file_cannot_hold_is_refused_before_training(
    family: str, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    change(base)
    with pytest.raises(BadConfigError, match=message) as error:
        check_model(base, "hf://org/base", tmp_path)
    assert str(error.value).startswith("spec.output.formats must not have GGUF for hf://org/base: ")
    assert "llama, qwen2, qwen3" in error.value.advice
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(base / "tokenizer.json"))
    with pytest.raises(BadConfigError, match="its tokenizer is not a byte-level BPE, but WordPiece"):
        check_model(base, "hf://org/base", tmp_path)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_every_pre_tokenizer_of_llama_cpp_that_is_supported_is_recognized(name: str, tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")

    def change(backend: Tokenizer) -> None:
        backend.pre_tokenizer = gguf_files._joined(gguf_files._PRE_TOKENIZERS[name])
        backend.model.ignore_merges = name == "llama-bpe"
        if name == "qwen2":
            backend.normalizer = normalizers.NFC()
        if name == "llama-bpe":
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])

    change_tokenizer(change)(base)
    check_model(base, "hf://org/base", tmp_path)
    path = written(base, tmp_path / "out")
    check(base, path)
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert fields["tokenizer.ggml.add_bos_token"].contents() == (name == "llama-bpe")


def test_the_names_of_all_weights_are_those_of_llama_cpp(llama: Path, tmp_path: Path) -> None:
    names = {tensor.name for tensor in gguf.GGUFReader(written(llama, tmp_path)).tensors}
    layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
    expected = {f"blk.{index}.{part}.weight" for index in range(2) for part in layer}
    assert names == expected | {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert len(names) == len(StoredWeights.of(llama).files)
    shutil.rmtree(tmp_path)
