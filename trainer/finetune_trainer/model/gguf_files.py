"""Writes a complete model as a GGUF file, the format of llama.cpp, and checks that a file is that model.

The names and orders of llama.cpp are from its converter, `convert_hf_to_gguf.py`, which is not in the package `gguf`.
Only models and tokenizers are written that transformers reads back: `check_model` writes a file without weights, and
compares what transformers makes of it with the original. Imports torch and gguf.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from finetune_api.run_layout import gguf_file
from finetune_api.v1alpha1 import GgufType

from ..errors import BadConfigError, ExportUnusableError
from ..methods.base import EXPORT_ADVICE
from .stored_weights import StoredWeights
from .tokenizer import load_tokenizer

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""`model_type` -> its architecture in llama.cpp, which has the same name."""

_BLOCK = 32
"""Weights that share a scale."""
_FILE_TYPES = {
    GgufType.F16: gguf.LlamaFileType.MOSTLY_F16,
    GgufType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    GgufType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    GgufType.Q5_0: gguf.LlamaFileType.MOSTLY_Q5_0,
    GgufType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}
_NOT_IN_FILE = frozenset(
    {
        *("_name_or_path", "architectures", "transformers_version", "dtype", "use_cache", "pretraining_tp"),
        *("attention_dropout", "initializer_range"),  # training
        *("bos_token_id", "eos_token_id", "pad_token_id"),  # of the tokenizer
        *("id2label", "label2id", "problem_type"),  # of classifiers
        "max_window_layers",  # has no effect without use_sliding_window
        "tie_word_embeddings",  # the file has no output matrix then
    }
)
"""Fields of config.json that do not change what a language model computes, or that the weights state."""

_GPT2_SPLIT: tuple[Any, ...] = (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),)


def _split(name: str) -> tuple[Any, ...]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated"), byte_level


_PRE_TOKENIZERS: dict[str, tuple[Any, ...]] = {
    "gpt-2": _GPT2_SPLIT,
    "smollm": (pre_tokenizers.Digits(individual_digits=True), *_GPT2_SPLIT),
    "llama-bpe": _split("llama-bpe"),
    "qwen2": _split("qwen2"),
}
"""`tokenizer.ggml.pre`, by which llama.cpp selects a pre-tokenizer -> that pre-tokenizer."""
_IGNORES_MERGES = "llama-bpe"
"""The name for which llama.cpp takes a word that is a token as it is."""

_PROBES = (
    "Hello world, it's 12345 degrees!\n\n\tThe  end...   \r\n",
    "caf\u00e9 na\u00efve \u00fcber \u4f60\u597d\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442",
    "\u0627\u0644 \U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x_1): return x_1**2 + 3.14e-5  # <b>100%</b>",
    "I'll  WE'VE don't 1 22 333 4444 55555 a.b-c_d/e",
)
"""Texts for the comparison of tokenizers, with what pre-tokenizers treat differently."""


def check_model(folder: Path, uri: str, scratch: Path) -> None:
    """Raise BadConfigError if a model folder cannot be written as a GGUF file that transformers and llama.cpp read."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in _ARCHITECTURES:
        raise _unsupported(uri, f"its model_type is {config.model_type}")
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        path = Path(work) / gguf_file(GgufType.Q8_0)
        writer = _writer(path, folder, uri, GgufType.Q8_0, "check")
        _write(writer, ())
        read = AutoConfig.from_pretrained(work, gguf_file=path.name)
        if wrong := _lost_setting(config, read):
            raise _unsupported(uri, wrong)
        if wrong := _tokenizer_fault(load_tokenizer(folder), path, _PROBES):
            raise _unsupported(uri, wrong)


def write_gguf(source: Path, path: Path, kind: GgufType, *, uri: str, name: str) -> None:
    """Write the complete model of a folder in Hugging Face layout. One matrix at a time is in memory.

    `uri` is the address of the base model, for messages; `name` is stored in the file. Raises BadConfigError.
    """
    writer = _writer(path, source, uri, kind, name)
    config, stored = AutoConfig.from_pretrained(source), StoredWeights.of(source)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    kinds = {}
    for own, shape in stored.shapes.items():
        base, _, suffix = own.rpartition(".")
        if (found := names.get_name(base)) is None:
            raise _unsupported(uri, f"the format has no name for the weight {own}")
        kinds[own] = stored_type(own, shape, kind)
        block, size = gguf.GGML_QUANT_SIZES[kinds[own]]
        writer.add_tensor_info(
            f"{found}.{suffix}",
            shape,
            _float_type(kinds[own]),
            math.prod(shape) // block * size,
            raw_dtype=kinds[own],
        )

    def data() -> Iterator[Any]:
        for own, stored_as in kinds.items():
            yield gguf.quantize(_in_file_order(own, stored.read(own), config).numpy(), stored_as)

    _write(writer, data())


def stored_type(name: str, shape: tuple[int, ...], kind: GgufType) -> Any:
    """How a file of a type stores a weight: vectors in 32 bits, matrices in the type if their rows can be divided into
    blocks."""
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    if kind in (GgufType.F16, GgufType.BF16):
        return gguf.GGMLQuantizationType[kind]
    if shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    if kind is not GgufType.Q8_0 and name.startswith(("model.embed_tokens.", "lm_head.")):
        return gguf.GGMLQuantizationType.Q8_0  # as llama.cpp, which also gives them more bits
    return gguf.GGMLQuantizationType[kind]


def values_in(kind: GgufType) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Returns for the name and the values of a weight those that a file of this type stands for.

    A scale belongs to weights of one row, so that they do not depend on the order of the rows.
    """

    def values(name: str, weight: torch.Tensor) -> torch.Tensor:
        stored_as = stored_type(name, tuple(weight.shape), kind)
        return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.contiguous().numpy(), stored_as), stored_as))

    return values


def check_tokenizer(source: Path, path: Path, uri: str, texts: Iterable[str]) -> None:
    """Raise ExportUnusableError if the tokenizer of a file is not that of the folder `source`."""
    original = load_tokenizer(source)
    try:
        wrong = _tokenizer_fault(original, path, (*_PROBES, *texts))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ExportUnusableError(f"the tokenizer of {uri} cannot be read: {error}", advice=EXPORT_ADVICE) from error
    if wrong:
        raise ExportUnusableError(f"{uri} has another tokenizer than the model: {wrong}", advice=EXPORT_ADVICE)


def _unsupported(uri: str, why: str) -> BadConfigError:
    return BadConfigError(
        f"spec.output.formats must not have GGUF for {uri}: {why}",
        advice=f"remove GGUF, or use a base model of the type {', '.join(_ARCHITECTURES)} without scaled rotary "
        f"embeddings and with a byte-level BPE tokenizer that divides texts like {', '.join(_PRE_TOKENIZERS)}",
    )


def _float_type(kind: Any) -> Any:
    """Type of the arrays that gguf writes for a type. Shapes are those of the weights, so not `uint8`, for which the
    writer would take them as numbers of bytes."""
    import numpy as np

    return np.float16 if kind is gguf.GGMLQuantizationType.F16 else np.float32


def _write(writer: Any, data: Iterable[Any]) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in data:
        writer.write_tensor_data(array)
    writer.close()


def _writer(path: Path, folder: Path, uri: str, kind: GgufType, name: str) -> Any:
    """A writer with all metadata."""
    config = AutoConfig.from_pretrained(folder)
    tokenizer = _FileTokenizer.of(load_tokenizer(folder), config.vocab_size, uri)
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config)
    tokenizer.add_to(writer)
    return writer


def _add_config(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = _head_size(config)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _in_file_order(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Order the rows of queries and keys as llama.cpp's Llama has them: it rotates neighbouring values of a head,
    transformers the two halves of a head."""
    layer = name.rpartition(".")[0]
    if config.model_type != "llama" or not layer.endswith(("q_proj", "k_proj")):
        return weight.contiguous()
    heads = config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def _lost_setting(config: Any, read: Any) -> str:
    """The first setting that a file does not reproduce; empty if there is none."""
    original, found = config.to_dict(), read.to_dict()
    for name in sorted(type(config)().to_dict().keys() - _NOT_IN_FILE):
        if not _is_same(original.get(name), found.get(name)):
            return f"a file cannot state {name}: {original.get(name)} in its config.json, {found.get(name)} when read"
    return ""


def _is_same(one: Any, other: Any) -> bool:
    """Whether two settings are the same after rounding to 32 bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_is_same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


@dataclass(frozen=True)
class _FileTokenizer:
    """A tokenizer as a file states it."""

    pre: str
    tokens: tuple[str, ...]
    """Of every row of the embedding."""
    types: tuple[Any, ...]
    merges: tuple[str, ...]
    special: dict[str, int | None]
    """Name of an id in the metadata -> the id."""
    adds_begin: bool
    adds_end: bool
    chat_template: Any

    @classmethod
    def of(cls, tokenizer: Any, rows: int, uri: str) -> "_FileTokenizer":
        """Raises BadConfigError if a file cannot state the tokenizer."""
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        pre = _pre_tokenizer_name(backend, uri)
        tokens, types = _tokens(tokenizer, rows, uri)
        begin, end = _added_tokens(tokenizer, uri)
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"])
        return cls(
            pre=pre,
            tokens=tokens,
            types=types,
            merges=tuple(merges),
            special={
                "bos": tokenizer.bos_token_id,
                "eos": tokenizer.eos_token_id,
                "unk": tokenizer.unk_token_id,
                "pad": tokenizer.pad_token_id,
            },
            adds_begin=begin,
            adds_end=end,
            chat_template=tokenizer.chat_template,
        )

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            if token is not None:
                getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds_begin)
        writer.add_add_eos_token(self.adds_end)
        if isinstance(self.chat_template, dict):
            entries = [{"name": name, "template": text} for name, text in self.chat_template.items()]
            writer.add_chat_template(entries)
        elif self.chat_template:
            writer.add_chat_template(self.chat_template)


def _pre_tokenizer_name(backend: dict[str, Any], uri: str) -> str:
    """`tokenizer.ggml.pre` of a tokenizer.json. Raises BadConfigError if llama.cpp has no such tokenizer."""
    model, decoder = backend["model"], backend["decoder"] or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        raise _unsupported(uri, f"its tokenizer is not a byte-level BPE, but {model['type']}")
    normalizer = (backend["normalizer"] or {}).get("type", "NFC")
    if normalizer != "NFC":  # llama.cpp reads texts as they are
        raise _unsupported(uri, f"its tokenizer has the normalizer {normalizer}")
    wanted = _comparable(backend["pre_tokenizer"])
    for name, parts in _PRE_TOKENIZERS.items():
        if wanted == _comparable(_serialized(parts)):
            if bool(model.get("ignore_merges")) != (name == _IGNORES_MERGES):
                raise _unsupported(uri, f"its tokenizer has ignore_merges {model.get('ignore_merges')}")
            return name
    raise _unsupported(uri, "llama.cpp has no name for its pre-tokenizer, or it is not supported here")


def _joined(parts: tuple[Any, ...]) -> Any:
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(list(parts))


def _serialized(parts: tuple[Any, ...]) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = _joined(parts)
    return json.loads(made.to_str())["pre_tokenizer"]


def _comparable(part: Any) -> Any:
    """Without what does not change the tokens of a text."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        inner = [_comparable(entry) for entry in part["pretokenizers"]]
        return inner[0] if len(inner) == 1 else inner
    return {name: value for name, value in part.items() if name != "trim_offsets"}


def _tokens(tokenizer: Any, rows: int, uri: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Token and type of every row of the embedding. Raises BadConfigError if there are fewer rows than tokens."""
    known = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    if max(known) >= rows:
        raise _unsupported(uri, f"its tokenizer has the token id {max(known)}, and its embedding has {rows} rows")
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    tokens, types = [], []
    for row in range(rows):
        tokens.append(known.get(row, f"[PAD{row}]"))
        if row not in known:
            types.append(gguf.TokenType.UNUSED)
        elif row in special or (row in added and added[row].special):
            types.append(gguf.TokenType.CONTROL)
        else:
            types.append(gguf.TokenType.USER_DEFINED if row in added else gguf.TokenType.NORMAL)
    return tuple(tokens), tuple(types)


def _added_tokens(tokenizer: Any, uri: str) -> tuple[bool, bool]:
    """Whether the tokenizer adds its begin and its end token to a text."""
    plain, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    for begin in (False, True):
        for end in (False, True):
            expected = [
                *([tokenizer.bos_token_id] if begin else []),
                *plain,
                *([tokenizer.eos_token_id] if end else []),
            ]
            if whole == expected:
                return begin, end
    raise _unsupported(uri, "its tokenizer adds other tokens than a begin and an end token to a text")


def _tokenizer_fault(original: Any, path: Path, texts: Iterable[str]) -> str:
    """How the tokenizer that transformers reads from a file differs; empty if it does not."""
    read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    fields = gguf.GGUFReader(path).fields
    pre = fields["tokenizer.ggml.pre"].contents()
    if pre not in _PRE_TOKENIZERS:
        return f"tokenizer.ggml.pre is {pre}"
    # transformers does not know all names, and neither what llama.cpp does for them.
    read.backend_tokenizer.pre_tokenizer = _joined(_PRE_TOKENIZERS[pre])
    read.backend_tokenizer.model.ignore_merges = pre == _IGNORES_MERGES
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(read, name) != getattr(original, name):
            return f"{name} is {getattr(read, name)}, not {getattr(original, name)}"
    template = original.chat_template
    if not isinstance(template, dict) and (read.chat_template or None) != (template or None):
        return "it has another chat template"
    special = "".join(f" a{token}" for token in original.all_special_tokens)
    normalizer = original.backend_tokenizer.normalizer
    for text in (*texts, special):
        # llama.cpp does not normalize texts.
        normal = text if normalizer is None else normalizer.normalize_str(text)
        for flag in (False, True):
            found, wanted = (one(normal, add_special_tokens=flag)["input_ids"] for one in (read, original))
            if found != wanted:
                return f"it has other tokens for {normal[:60]!r}: {found[:12]}, not {wanted[:12]}"
    return ""
