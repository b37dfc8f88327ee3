"""Checks in the prepare stage whether a model keeps the examples of a pack apart.

Attention layers of transformers find the examples of a row by its position ids, which begin at 0 with each of them.
Layers that carry a state along the row (state space, linear attention, convolutions) do not, and some models count
positions from the start of the row or do not take position ids. Which ones depends on the version of transformers, so
the class of the model is built with random weights, and the logits of texts in one row are compared with those of each
text alone.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import BadConfigError
from ..tasks.base import TrainingTask, join_rows

TOLERANCE = 1e-3
"""Maximum difference of a logit, as a share of the largest one. Rounding causes 1e-6 to 1e-4, mixed texts over 1e-1."""

_MAX_PARAMETERS = 100 * 10**6
"""Larger models are made narrow. This many take 400 MB, which the prepare stage has before it reads the data."""
_TOKENS = 24
"""Width of the checked row."""
_VOCABULARY = 48
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""They get the ids 0, 1 and 2, which the checked texts do not have."""
_PER_HEAD = 16
_INNER = 32
"""Width of the feed-forward layers of a narrow model."""
_WINDOW = 3
"""Tokens that a layer with a sliding window or chunks sees in the check, if it does not see a whole pack."""
_EXPERTS = 16

_SIZES = ((False, False), (True, True), (True, False))
"""Whether the model is narrow, and whether it has few experts: the first size that can be checked decides."""

_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention")
_INNER_SIZES = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "ffn_dim",
    "decoder_ffn_dim",
    "n_inner",
    "ffn_hidden_size",
)
_NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_selected_experts", "moe_topk", "moe_k")


def check_packs(model_class: Any, config: Any, uri: str, task: TrainingTask, *, capacity: int) -> None:
    """Raise BadConfigError unless the model keeps the examples of packs of `capacity` tokens apart."""
    name = f"{model_class.__name__}, the class of {uri},"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for size in _SIZES:
            try:
                model = _random_model(model_class, _smaller_config(config, capacity, *size))
                _check_logits(model, name, task, capacity)
            except _UncheckedError:
                continue
            return
    raise _refusal(f"it could not be checked whether {name} keeps the examples of a pack apart")


def _refusal(reason: str) -> BadConfigError:
    return BadConfigError(
        f"spec.data.packing must not be Packed for this base model: {reason}",
        advice="set spec.data.packing: Padded or LengthGrouped, or use another base model",
    )


class _UncheckedError(Exception):
    """A model cannot be checked: it is too large, its configuration does not fit the class, or it shows nothing."""


def _smaller_config(config: Any, capacity: int, is_narrow: bool, has_few_experts: bool) -> Any:
    """Return the configuration with a small vocabulary. Raises _UncheckedError if it does not allow a change."""
    smaller = copy.deepcopy(config)
    try:
        text = smaller.get_text_config()
        _limit(text, ("vocab_size", "vocab_size_per_layer_input"), _VOCABULARY)
        for token, special in enumerate(_SPECIAL_TOKENS):
            setattr(text, special, token)
        for window in _WINDOWS:
            size = getattr(text, window, None)
            if isinstance(size, int) and size < capacity:
                setattr(text, window, min(size, _WINDOW))
        if is_narrow:
            _narrow(text)
        if has_few_experts:
            _limit(text, _NUMBERS_OF_EXPERTS, _EXPERTS)
            _limit(text, _EXPERTS_PER_TOKEN, _EXPERTS // 2)
    except Exception as error:  # configurations raise any exception for values that do not fit
        raise _UncheckedError from error
    return smaller


def _narrow(text: Any) -> None:
    """Keep at most two groups of heads. All layers are kept, because they may be of different kinds."""
    if getattr(text, "num_attention_heads", None) is None:  # a state-space model, whose layers are all alike
        text.num_hidden_layers = 2
        return
    heads, wide = int(text.num_attention_heads), int(text.hidden_size)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    kept_groups = min(groups, 2)
    kept = kept_groups * (2 if heads > groups else 1)
    # The width of the heads is a field of its own in most families, and follows from the width of the model in others.
    text.num_attention_heads = kept
    text.hidden_size = kept * (_PER_HEAD if getattr(text, "head_dim", None) else wide // heads)
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = kept_groups
    _limit(text, _INNER_SIZES, _INNER)


def _limit(text: Any, names: Sequence[str], largest: int) -> None:
    for name in names:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > largest:
            setattr(text, name, largest)


def _random_model(model_class: Any, config: Any) -> PreTrainedModel:
    """Build a model of which all layers matter for the logits: matrices are drawn with a large deviation.

    Raises _UncheckedError if the model is too large, or if it cannot be built.
    """
    try:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in model_class(config).parameters())
        if parameters > _MAX_PARAMETERS:
            raise _UncheckedError
        model: PreTrainedModel = model_class(config).float().eval()
    except Exception as error:  # modeling files raise any exception
        raise _UncheckedError from error
    model.config.use_cache = False
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


@torch.inference_mode()
def _check_logits(model: Any, name: str, task: TrainingTask, capacity: int) -> None:
    """Raise BadConfigError if the logits of texts in packs are not those of each text alone.

    Raises _UncheckedError if the model cannot compute a text alone, or if mixed texts would have the same logits.
    """
    width = min(_TOKENS, capacity)
    rows = [_row(length) for length in (width // 2, width // 3, width // 4)]
    packs = [join_rows(rows[:2]), join_rows(rows[2:])]  # the second one is padded
    try:
        alone = [_logits(model, task, [row])[0] for row in rows]
        mixed = _logits(model, task, [_row_of(packs[0]["input_ids"])])[0, len(rows[0]["input_ids"]) :]
    except Exception as error:
        raise _UncheckedError from error
    largest = max(float(logits.abs().max()) for logits in alone)
    if not _difference(mixed, alone[1]) > 10 * TOLERANCE * largest:
        raise _UncheckedError
    try:
        packed = _logits(model, task, packs)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise _refusal(f"{name} cannot compute several examples in one row: {reason}") from error
    first, second, third = (len(row["input_ids"]) for row in rows)
    found = [packed[0, :first], packed[0, first : first + second], packed[1, :third]]
    difference = max(_difference(one, other) for one, other in zip(found, alone, strict=True)) / largest
    if not difference <= TOLERANCE:
        raise _refusal(
            f"{name} does not keep the examples of a pack apart: the logits of texts in one row differ from those of "
            f"each text alone by {difference:.1g} of the largest logit (at most {TOLERANCE:.0e} is allowed)"
        )


def _row(length: int) -> dict[str, Any]:
    return _row_of(torch.randint(len(_SPECIAL_TOKENS), _VOCABULARY, (length,)).numpy())


def _row_of(tokens: Any) -> dict[str, Any]:
    return {"input_ids": tokens, "labels": tokens}


def _logits(model: Any, task: TrainingTask, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    logits: torch.Tensor = model(**task.inputs(task.collate(rows, 0))).logits
    return logits


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference; NaN counts as infinite."""
    return float((logits - expected).abs().max().nan_to_num(nan=torch.inf))
