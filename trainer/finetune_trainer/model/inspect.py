"""Reads the properties of a model folder without loading weights, and checks whether the model supports the task."""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.v1alpha1 import Task

from ..errors import ModelUnusableError
from ..tasks import TASKS
from .files import PICKLED_WEIGHTS, VOCABULARY_FILES, matches

_DECODER_HEADS = ("ForCausalLM", "LMHeadModel")
_PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Keys of config.json that state how many tokens a sequence may have."""
_NORM = re.compile(r"norm\d*\.|(^|\.)ln_\w+\.")
"""Names of tensors of normalization layers, in lower case."""
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
_INTERMEDIATE_SIZE = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
_QUANTIZED_SUFFIX = re.compile(
    r"([-_.](unsloth|bnb|gptq|awq|fp8|nf4|mxfp4|nvfp4|int[48]|[48]-?bits?|w\d+a\d+|g\d+|quantized|dynamic|hqq|aqlm|exl[23]))+$",
    re.IGNORECASE,
)
_PACKED = (".qweight", ".qzeros")
"""Suffixes of GPTQ and AWQ tensors. Older tools write them without an entry in config.json."""
_QUANTIZED_SETTINGS = ("quantize_config.json", "quant_config.json")
"""Files that these tools write. They are ignored if the folder also has plain weights."""
_NOT_ADAPTED = ("embed", "lm_head", "classifier", "score", "wte", "wpe", "predictions")


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, from config.json and the headers of its weight files."""

    model_type: str
    is_decoder: bool
    """Whether config.json describes a decoder."""
    is_encoder_decoder: bool
    parameters: int
    largest_parameter: int
    """Elements of the largest tensor, most often the embeddings."""
    linear: tuple[tuple[str, tuple[int, int]], ...]
    """Name, and rows and columns, of every matrix that LoRA may adapt: all but embeddings and heads."""
    hidden_size: int
    layers: int
    vocabulary: int
    positions: int | None
    """Maximum number of tokens of a sequence by config.json; None if it has no limit."""
    gradient_checkpointing: bool = True
    """Whether the model supports gradient checkpointing; known when the model has been built, see `model.weights`."""
    frozen: int = 0
    """Parameters that the fine-tuning method freezes; known when the model has been built, see `methods`."""
    key_value_size: int = 0
    """Values in the keys of one token and layer, over all heads that have own keys."""
    attention_size: int = 0
    """Values in the queries of one token and layer, over all heads."""
    intermediate_size: int = 0
    """Width of the MLP of a layer: of one token, over all experts that compute it. 0 where config.json does not state
    it."""
    norms: int = 0
    """Elements of the normalization layers."""
    heads_with_dropout: int = 0
    """Query heads of a layer, if their scores have dropout."""
    new_rows: int = 0
    """Rows of tokens of `spec.model.vocabulary`, in the embeddings and, if it has its own, in the output matrix."""


def inspect_model(folder: Path, uri: str) -> ModelFacts:
    """Check that the folder has a usable model, and return its sizes.

    Raises ModelUnusableError with the file and what is wrong.
    """
    config = _config(folder, uri)
    _reject_quantized(config, uri)
    # Integer tensors are buffers, such as the position ids of BERT.
    shapes = {name: shape for name, (shape, dtype) in _tensors(folder, uri).items() if dtype in _PLAIN_TYPES}
    if not any(matches(path.name, VOCABULARY_FILES) for path in folder.iterdir()):
        raise ModelUnusableError(
            f"{uri} has no tokenizer: no tokenizer.json (or vocab.txt, vocab.json, *.model)",
            advice="copy the tokenizer's files into the folder of the weights",
        )
    nested = config.get("text_config")  # multimodal models
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    names = tuple(config.get("architectures") or ())
    sizes = [prod(shape) for shape in shapes.values()]
    return ModelFacts(
        model_type=str(config["model_type"]),
        is_decoder=bool(config.get("is_decoder")) or any(name.endswith(_DECODER_HEADS) for name in names),
        is_encoder_decoder=bool(config.get("is_encoder_decoder")),
        parameters=sum(sizes),
        largest_parameter=max(sizes, default=0),
        linear=tuple((name, (shape[0], shape[1])) for name, shape in shapes.items() if _is_linear(name, shape)),
        hidden_size=_first(text, *_HIDDEN_SIZE) or 0,
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers") or 0,
        vocabulary=_first(text, "vocab_size") or 0,
        positions=_first(text, *POSITIONS),
        key_value_size=_head_size(text) * (_first(text, "num_key_value_heads") or _heads(text)),
        attention_size=_head_size(text) * _heads(text),
        intermediate_size=_intermediate_size(text),
        norms=sum(prod(shape) for name, shape in shapes.items() if _NORM.search(name.lower())),
        heads_with_dropout=_heads(text) if any(text.get(name) for name in _ATTENTION_DROPOUT) else 0,
    )


def check_task(facts: ModelFacts, uri: str, task: Task) -> None:
    """Raise ModelUnusableError if transformers has no head for the task, or if the model was not trained for it."""
    from transformers.models.auto import configuration_auto
    from transformers.models.auto import modeling_auto as auto

    model_type = facts.model_type
    head_types = getattr(auto, TASKS[task].head_types)
    # transformers also has causal heads for encoders such as BERT, but they are useful only for decoders.
    reads_only = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not facts.is_decoder
    if TASKS[task].needs_decoder and (reads_only or facts.is_encoder_decoder):
        kind = "an encoder-decoder" if facts.is_encoder_decoder else "an encoder"
        raise ModelUnusableError(
            f"{uri} is {kind} (model_type {model_type}), which cannot be trained as a {task} model",
            advice="use it with Classification data, "
            + ("set spec.model.task: MaskedLM to continue its pre-training on Text, " if reads_only else "")
            + "or choose a decoder model such as Llama, Qwen, Gemma or SmolLM",
        )
    if TASKS[task].needs_encoder and (facts.is_decoder or facts.is_encoder_decoder):
        kind = "an encoder-decoder" if facts.is_encoder_decoder else "a decoder"
        raise ModelUnusableError(
            f"{uri} is {kind} (model_type {model_type}), which cannot be trained as a {task} model",
            advice="choose an encoder such as BERT, RoBERTa, DistilBERT or ModernBERT"
            + ("" if facts.is_encoder_decoder else ", or remove spec.model.task to train it to predict the next token"),
        )
    if model_type not in head_types:
        known = model_type in configuration_auto.CONFIG_MAPPING
        raise ModelUnusableError(
            f"{uri} has the model_type {model_type}, and the installed transformers has "
            + (f"no {task} head for it" if known else "no model of this type"),
            advice="choose another base model, or an image with a newer transformers",
        )


def _reject_quantized(config: dict[str, Any], uri: str) -> None:
    for where in ("", "text_config."):
        block = config.get("text_config") if where else config
        for key in ("quantization_config", "compression_config"):
            if isinstance(block, dict) and block.get(key):
                raise _quantized_error(uri, f"config.json has {where}{key} ({_method(block[key])})")


def _method(settings: Any) -> str:
    """Return the method of a quantization_config, such as `gptq` or `bitsandbytes, load_in_4bit`."""
    if not isinstance(settings, dict):
        return str(settings)[:40]
    switches = (key for key in ("load_in_4bit", "load_in_8bit") if settings.get(key))
    return ", ".join(filter(None, (str(settings.get("quant_method") or "")[:40], *switches))) or "no quant_method"


def _quantized_error(uri: str, finding: str) -> ModelUnusableError:
    plain = _QUANTIZED_SUFFIX.sub("", uri.rstrip("/"))
    guess = f" (possibly {plain})" if plain != uri.rstrip("/") else ""
    return ModelUnusableError(
        f"{uri} is quantized, and quantized weights cannot be trained: {finding}",
        advice="use the model without quantization: it usually has the same name without the suffix -4bit, "
        f"-GPTQ, -AWQ or -FP8{guess}, and is named as base_model in the model card",
    )


def _heads(text: dict[str, Any]) -> int:
    return _first(text, *_HEADS) or 1


def _head_size(text: dict[str, Any]) -> int:
    return _first(text, "head_dim") or (_first(text, *_HIDDEN_SIZE) or 0) // _heads(text)


def _intermediate_size(text: dict[str, Any]) -> int:
    width = _first(text, *_INTERMEDIATE_SIZE) or 0
    experts = _first(text, "num_experts_per_tok", "num_experts_per_token")
    return width if experts is None else experts * (_first(text, "moe_intermediate_size") or width)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not any(word in name for word in _NOT_ADAPTED)


def _config(folder: Path, uri: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ModelUnusableError(
            f"{uri} has no config.json", advice="name the folder in Hugging Face layout with config.json"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelUnusableError(f"{uri}: config.json is not JSON: {error}", advice="copy the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelUnusableError(
            f"{uri}: config.json has no model_type", advice="use a model that transformers can load by itself"
        )
    return config


def tensor_shapes(folder: Path, uri: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor from the headers of the weight files. Raises ModelUnusableError if quantized."""
    return {name: shape for name, (shape, _) in _tensors(folder, uri).items()}


def _tensors(folder: Path, uri: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and stored type of every tensor."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in _weight_files(folder, uri):
        for name, shape, dtype in _header(path, uri):
            if name.endswith(_PACKED):
                raise _quantized_error(uri, f"{name} in {path.name} is a packed weight")
            if dtype not in _PLAIN_TYPES and name.endswith(".weight"):
                raise _quantized_error(uri, f"{name} in {path.name} is stored as {dtype}")
            tensors[name] = shape, dtype
    return tensors


def _header(path: Path, uri: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and stored type of every tensor of one weight file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [(name, tuple(entry.get_shape()), entry.get_dtype()) for name, entry in slices.items()]
    except (SafetensorError, OSError) as error:
        raise ModelUnusableError(
            f"{uri}: {path.name} is not a complete safetensors file: {error}", advice="copy the model again"
        ) from error


def _weight_files(folder: Path, uri: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelUnusableError(f"{uri}: {index.name} is damaged", advice="copy the model again") from error
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise ModelUnusableError(
                f"{uri} lacks {len(missing)} of its {len(names)} weight files: {', '.join(missing[:3])}",
                advice="copy the model again, with all files that model.safetensors.index.json names",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    for name in _QUANTIZED_SETTINGS:
        if (folder / name).exists():
            raise _quantized_error(uri, f"it has {name} and no model.safetensors")
    others = sorted(path.name for path in folder.iterdir() if matches(path.name, PICKLED_WEIGHTS))
    pickled = f"; there is {', '.join(others[:3])}, which is not loaded" if others else ""
    raise ModelUnusableError(
        f"{uri} has no weights: no model.safetensors and no model.safetensors.index.json{pickled}",
        advice="save the model with transformers' save_pretrained, which writes safetensors",
    )


def _first(config: dict[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
