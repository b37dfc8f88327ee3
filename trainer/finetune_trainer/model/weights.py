"""Determines which parameters of a task's model a folder has weights for, without reading weights.

The model is built on torch's meta device, and transformers' loader matches it with empty tensors that have the names
and shapes of the folder's safetensors headers. Renamed, fused and tied weights are therefore matched exactly as when
the model is loaded, and the result is the same in every process and at every ZeRO stage.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.auto.auto_factory import _get_model_class
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from finetune_api.v1alpha1 import Task

from ..errors import ModelUnusableError
from ..tasks import TASKS
from .checkpointed_layers import checkpointable_layers
from .inspect import POSITIONS, tensor_shapes
from .tokenizer import check_special_tokens, load_tokenizer

_SHOWN = 4
"""Maximum number of names in an error message."""
_SHOWN_LETTERS = 40
"""Maximum number of characters of a label in a message."""


@dataclass(frozen=True)
class LabelRows:
    """Use of the base model's classifier rows."""

    order: tuple[int, ...] | None
    """Row i of the new head is row `order[i]` of the folder's. None: the rows are initialized."""
    note: str = ""
    """Explanation for the user; empty for a model without a classifier."""


@dataclass(frozen=True)
class WeightPlan:
    """Sources of the parameters of a task's model: the folder or initialization."""

    model_class: Any
    config: Any
    new: tuple[str, ...]
    """Parameters that are initialized, sorted: those of the head (and the pooler) for which the folder has no matching
    weights."""
    misshapen: tuple[str, ...]
    """Those of `new` that the folder has with another shape."""
    label_axes: Mapping[str, int]
    """Parameter -> its axis with one row per label. Classification only."""
    labels: LabelRows
    unused: tuple[str, ...]
    """Weights of the folder that are part of the base model but not of the architecture in `config.json`."""
    gradient_checkpointing: bool
    """Whether the model supports gradient checkpointing."""
    checkpointable_layers: int
    """Number of layers that can be checkpointed one by one."""
    positions: int | None
    """Number of tokens that the position table supports, if the model counts positions from its pad id."""
    matrices: Mapping[str, tuple[int, int]]
    """Linear layer that `spec.model.quantization` may apply to -> its outputs and inputs: those of the base model that
    the folder has weights for. See `model.quantize.quantizable`."""
    unquantized: tuple[str, ...]
    """The other linear layers."""
    embeddings: int | None
    """Rows of the input embedding, one per token id. None: the model has no such table (CANINE hashes)."""

    @property
    def has_head(self) -> bool:
        """False for a classifier whose rows for the labels are initialized."""
        return not set(self.label_axes) & set(self.new)


def plan_weights(folder: Path, uri: str, task: Task, labels: tuple[str, ...] = ()) -> WeightPlan:
    """Match a folder with the model of a task. Without `labels`, a classifier has those of the folder's config.json.

    Raises ModelUnusableError if parameters other than a head would have to be initialized: if names do not match, if
    shapes differ from `config.json`, or if a language model has no head.
    """
    own = _own_config(folder, uri, task)
    config = own
    head = TASKS[task]
    pad_token_id = load_tokenizer(folder).pad_token_id if head.needs_pad_token else None
    if settings := head.config_settings(labels, pad_token_id):
        config = _own_config(folder, uri, task, **settings)
    try:
        with unpartitioned():
            model_class: Any = _get_model_class(config, head.model_class._model_mapping)
            model, found = _match(model_class, config, tensor_shapes(folder, uri))
            axes = _label_axes(model, config) if head.has_labels else {}
    except ModelUnusableError:
        raise
    except Exception as error:  # modeling files raise any exception for an invalid config.json
        if rows := getattr(config.get_text_config(), "vocab_size", None):
            # torch rejects a padding index without a row in the embedding.
            check_special_tokens(load_tokenizer(folder), rows, uri)
        raise _cannot_load(folder, uri, task, error) from error
    missing = set(found["missing_keys"])
    misshapen = {name: (tuple(stored), tuple(built)) for name, stored, built in found["mismatched_keys"]}
    parts = _Parts.of(model, axes)
    _reject_foreign(parts, missing, misshapen, sorted(found["unexpected_keys"]), uri, task)
    rows = _label_rows(axes, missing, misshapen, own, labels)
    redrawn = set(axes) if rows.order is None else set()
    new = missing | set(misshapen) | redrawn
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    matrices = _quantizable(model, linear, parts, new)
    can_checkpoint = _can_checkpoint(model)
    return WeightPlan(
        model_class=model_class,
        config=config,
        new=tuple(sorted(new)),
        misshapen=tuple(sorted(misshapen)),
        label_axes=axes,
        labels=rows,
        unused=tuple(name for name in sorted(found["unexpected_keys"]) if parts.has_place_in_base(name)),
        gradient_checkpointing=can_checkpoint,
        checkpointable_layers=checkpointable_layers(model) if can_checkpoint else 0,
        positions=_counted_positions(model),
        matrices=matrices,
        unquantized=tuple(name for name in linear if name not in matrices),
        embeddings=_embedding_rows(model),
    )


def _own_config(folder: Path, uri: str, task: Task, **settings: Any) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, **settings)
    except Exception as error:
        raise _cannot_load(folder, uri, task, error) from error


def _cannot_load(folder: Path, uri: str, task: Task, error: Exception) -> ModelUnusableError:
    return ModelUnusableError(
        f"{uri} cannot be loaded for {task}: {type(error).__name__}: {error}",
        advice="spec.model.uri must point to a folder in Hugging Face layout with config.json, a tokenizer and "
        "safetensors weights of an architecture that supports this task",
    )


def _match(
    model_class: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=empty,
        device_map={"": "meta"},
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, found


def _label_axes(model: PreTrainedModel, config: Any) -> dict[str, int]:
    """Return the parameters with one row per label: those that grow when a label is added."""
    config = copy.deepcopy(config)
    config.num_labels += 1
    with torch.device("meta"):
        larger = type(model)(config).state_dict()
    axes = {}
    for name, parameter in model.state_dict().items():
        grown = [axis for axis, size in enumerate(parameter.shape) if larger[name].shape[axis] != size]
        if grown:
            axes[name] = grown[0]
    return axes


@dataclass(frozen=True)
class _Parts:
    """Distinguishes parameters of the base model from those of the head."""

    prefix: str
    """Prefix of the base model's names; empty if the class has none."""
    children: frozenset[str]
    """First parts of the names within the base model."""
    head: frozenset[str]
    """First parts of the names of the head, if there is no prefix."""
    names: frozenset[str]

    @classmethod
    def of(cls, model: PreTrainedModel, axes: Mapping[str, int]) -> "_Parts":
        base = model.base_model
        return cls(
            prefix="" if base is model else f"{model.base_model_prefix}.",
            children=frozenset(name for name, _ in base.named_children()),
            head=frozenset(name.split(".")[0] for name in axes),
            names=frozenset(model.state_dict()),
        )

    def in_base(self, name: str) -> bool:
        """Whether a parameter belongs to the base model. A pooler belongs to the head: masked language models have
        none."""
        if "pooler" in name.split("."):
            return False
        return name.startswith(self.prefix) if self.prefix else name.partition(".")[0] not in self.head

    def has_place_in_base(self, stored: str) -> bool:
        """Whether a stored name without a parameter belongs to a module of the base model."""
        parts = stored.removeprefix(self.prefix).split(".")
        return parts[0] in self.children and "pooler" not in parts

    def wrapper_of(self, missing: Collection[str], stored: Collection[str]) -> str:
        """Return the prefix of the folder's names if it is the reason why they do not match."""
        wanted = [name.removeprefix(self.prefix) for name in sorted(missing)[:50]]
        found = Counter(
            name[: -len(end)].removesuffix(self.prefix)
            for end in wanted
            for name in stored
            if name.endswith(f".{end}") and name != f"{self.prefix}{end}"
        )
        return found.most_common(1)[0][0] if found else ""


def _reject_foreign(
    parts: _Parts,
    missing: Collection[str],
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    unexpected: Collection[str],
    uri: str,
    task: Task,
) -> None:
    """Raise ModelUnusableError unless all parameters without a matching weight belong to a new head."""
    may_draw_head = TASKS[task].may_draw_head
    if wrong := sorted(name for name in misshapen if not may_draw_head or parts.in_base(name)):
        shown = ", ".join(
            f"{name} is {list(misshapen[name][0])} in the weight files and {list(misshapen[name][1])} according to "
            "config.json"
            for name in wrong[:_SHOWN]
        )
        raise ModelUnusableError(
            f"{uri}: config.json does not describe the weights: {len(wrong)} of {len(parts.names)} have another "
            f"shape: {shown}",
            advice="use the config.json that was saved with these weights",
        )
    absent = sorted(name for name in missing if not may_draw_head or parts.in_base(name))
    if not absent:
        return
    unused = f"; {len(unexpected)} weights in the folder are not used: {_listed(unexpected)}" if unexpected else ""
    message = f"{uri} lacks {len(absent)} of the model's {len(parts.names)} weights: {_listed(absent)}{unused}"
    if wrapper := parts.wrapper_of(missing, unexpected):
        raise ModelUnusableError(
            message,
            advice=f"the names in the weight files begin with {wrapper!r}; remove this prefix (it is from a wrapper "
            "around the model), or save the inner model with transformers' save_pretrained",
        )
    if not may_draw_head and not any(parts.in_base(name) for name in absent):
        raise ModelUnusableError(message, advice=TASKS[task].no_head_advice)
    raise ModelUnusableError(
        message, advice="use the config.json that belongs to these weights, and weights saved with save_pretrained"
    )


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _label_rows(
    axes: Mapping[str, int],
    missing: Collection[str],
    misshapen: Collection[str],
    own: Any,
    labels: tuple[str, ...],
) -> LabelRows:
    """Keep the base model's classifier rows, in the order of the data's labels, if both have the same labels."""
    if not axes or set(axes) & set(missing):
        return LabelRows(None)
    if not labels:
        return LabelRows(())
    theirs = [str(own.id2label[index]).strip() for index in sorted(own.id2label)]
    order = None if set(axes) & set(misshapen) else matching_rows(theirs, labels)
    if order is None:
        shown = _listed([label[:_SHOWN_LETTERS] for label in theirs])
        return LabelRows(
            None,
            f"the base model's classifier has other labels ({shown}) than the data, so its output layer is randomly "
            "initialized",
        )
    return LabelRows(order, "the base model's classifier is kept: it has the labels of the data")


def matching_rows(theirs: list[str], ours: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the index in `theirs` of each of `ours`, or None if the labels are not the same.

    Case is ignored, unless there are labels that differ only in case.
    """
    for key in (str, str.casefold):
        places = {key(label): index for index, label in enumerate(theirs)}
        wanted = [key(label) for label in ours]
        if len(places) == len(theirs) == len(set(wanted)) and set(wanted) == set(places):
            return tuple(places[label] for label in wanted)
    return None


def _is_linear(module: nn.Module) -> bool:
    """Whether transformers can quantize a layer. A subclass of `nn.Linear` may read its own weight."""
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def _quantizable(
    model: Any, linear: Mapping[str, Any], parts: _Parts, new: Collection[str]
) -> dict[str, tuple[int, int]]:
    """The linear layers of the base model, without those that are new, shared or needed in 32 bit."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    kept = {name.rpartition(".")[0] for name in (*new, *tied.keys(), *tied.values())}
    in_32_bit = list(model._keep_in_fp32_modules or ())
    found = {}
    for name, layer in linear.items():
        is_head = layer is model.get_output_embeddings() or not parts.in_base(f"{name}.weight")
        if is_head or name in kept or not should_convert_module(name, in_32_bit):
            continue
        rows, columns = layer.weight.shape
        found[name] = (int(columns), int(rows)) if isinstance(layer, Conv1D) else (int(rows), int(columns))
    return found


def _embedding_rows(model: PreTrainedModel) -> int | None:
    try:
        table = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        return None
    return int(table.shape[0]) if isinstance(table, torch.Tensor) and table.dim() > 1 else None


def _can_checkpoint(model: PreTrainedModel) -> bool:
    """Enable gradient checkpointing to find out: some classes report only then that they do not support it."""
    if not model.supports_gradient_checkpointing:
        return False
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        return False
    model.activation_checkpointing_disable()
    return True


def _counted_positions(model: Any) -> int | None:
    """Return the number of usable positions of a table whose positions start after the pad id; None for other tables.

    Models from fairseq (RoBERTa, MPNet, Longformer, I-BERT, ...) number tokens from `padding_idx + 1`. Among position
    tables, only theirs have a `padding_idx`.
    """
    text = model.config.get_text_config()
    sizes = {getattr(text, name, None) for name in POSITIONS}
    for name, module in model.named_modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" not in name.rsplit(".", 1)[-1] or padding is None or not isinstance(table, torch.Tensor):
            continue
        if table.shape[0] in sizes:
            return int(table.shape[0]) - int(padding) - 1
    return None


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Build models in this context without partitioning, also under ZeRO-3."""
    before = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = before
