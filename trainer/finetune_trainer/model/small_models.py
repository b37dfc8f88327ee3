"""Small models of the class of a base model, with random weights.

Some properties of a class can only be found by computing with it: what its layers do depends on the version of
transformers.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

_MAX_PARAMETERS = 100 * 10**6
"""Larger models are made narrow. This many take 400 MB, which the prepare stage has before it reads the data."""
VOCABULARY = 48
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
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


class UncheckedError(Exception):
    """A model cannot be checked: it is too large, its configuration does not fit the class, or it shows nothing."""


def small_models(model_class: Any, config: Any, *, capacity: int) -> Iterator[PreTrainedModel]:
    """Yield models of the class with random weights on the CPU, those that are most like the base model first.

    `capacity` is the number of tokens of a row: windows of layers that are smaller get smaller. Sizes that cannot be
    built are left out.
    """
    for size in _SIZES:
        try:
            model = _random_model(model_class, _smaller_config(config, capacity, *size))
        except UncheckedError:
            continue
        yield model


def _smaller_config(config: Any, capacity: int, is_narrow: bool, has_few_experts: bool) -> Any:
    """Return the configuration with a small vocabulary. Raises UncheckedError if it does not allow a change."""
    smaller = copy.deepcopy(config)
    try:
        text = smaller.get_text_config()
        _limit(text, ("vocab_size", "vocab_size_per_layer_input"), VOCABULARY)
        for token, special in enumerate(SPECIAL_TOKENS):
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
        raise UncheckedError from error
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

    Raises UncheckedError if the model is too large, or if it cannot be built.
    """
    try:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in model_class(config).parameters())
        if parameters > _MAX_PARAMETERS:
            raise UncheckedError
        model: PreTrainedModel = model_class(config).float().eval()
    except Exception as error:  # modeling files raise any exception
        raise UncheckedError from error
    model.config.use_cache = False
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model
