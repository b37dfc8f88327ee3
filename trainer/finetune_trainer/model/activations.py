"""What a layer of a transformer saves for its backward pass on a GPU, by architecture. Pure.

Counted from the modules of transformers with sdpa, which saves queries, keys, values and its result, and a number for
each head and token, but not the scores (Dao et al. 2022, arXiv 2205.14135). `tests/unit/model/test_activations.py`
compares the result with what torch saves for each of `LAYERS`. Linear layers save their inputs also if they are frozen
here, because most of them have an adapter; without one, a frozen layer saves less.
"""

from dataclasses import dataclass
from enum import IntEnum

from .inspect import ModelFacts

UNKNOWN_ARCHITECTURE_FACTOR = 1.5
"""Factor of the activations of an architecture that is not in `LAYERS`."""

_RMS_NORM, _GEMMA_RMS_NORM, _LAYER_NORM = "RMSNorm", "GemmaRMSNorm", "LayerNorm"
"""That of Gemma multiplies by its weight in 32 bit, so that the normalized values are saved in 32 bit, too."""


class Mlp(IntEnum):
    """How an MLP is built: the number of tensors of its width that it saves for the backward pass."""

    PLAIN = 2
    """One projection, and one kernel for the activation function."""
    GATED = 4
    """The activation function of one projection is multiplied with another projection."""
    UNFUSED = 5
    """One projection, and an activation function of several operations, as in GPT-2."""


@dataclass(frozen=True)
class Layer:
    """How a layer of an architecture is built."""

    norm: str
    mlp: Mlp = Mlp.PLAIN
    result_norms: int = 0
    """Normalizations of what a block adds to the hidden states, besides the two before or after the blocks."""
    normalizes_queries: bool = False
    """Whether queries and keys are normalized too."""
    dropouts: int = 0
    """Dropouts of the hidden states, with a mask of one byte per value."""


_LLAMA = Layer(_RMS_NORM, mlp=Mlp.GATED)
_BERT = Layer(_LAYER_NORM, dropouts=2)

LAYERS: dict[str, Layer] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "qwen3": Layer(_RMS_NORM, mlp=Mlp.GATED, normalizes_queries=True),
    "gemma": Layer(_GEMMA_RMS_NORM, mlp=Mlp.GATED),
    "gemma3_text": Layer(_GEMMA_RMS_NORM, mlp=Mlp.GATED, result_norms=2, normalizes_queries=True),
    "gpt2": Layer(_LAYER_NORM, mlp=Mlp.UNFUSED, dropouts=2),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": Layer(_LAYER_NORM, dropouts=1),
}
"""model_type -> its layers."""


def is_known(facts: ModelFacts) -> bool:
    """Whether the activations of the architecture are known rather than guessed."""
    return facts.model_type in LAYERS


def guess_note(facts: ModelFacts) -> str:
    """Say how the activations of an unknown architecture are estimated; empty for a known one."""
    if is_known(facts):
        return ""
    like = "a gated MLP, like Llama" if _guessed(facts).mlp is Mlp.GATED else "a plain MLP, like BERT"
    return (
        f"the estimate does not know the architecture {facts.model_type}: its activations are those of layers with "
        f"{like}, times {UNKNOWN_ARCHITECTURE_FACTOR:g}"
    )


def saved_bytes(facts: ModelFacts, bytes_per_value: int, *, has_mask: bool) -> int:
    """Return the bytes that one layer saves of one token for its backward pass. Without the attention mask.

    With a mask, sdpa gets keys and values once for each query head.
    """
    layer = LAYERS.get(facts.model_type) or _guessed(facts)
    hidden = facts.hidden_size
    queries = facts.attention_size or hidden
    keys = queries if has_mask else facts.key_value_size or queries
    attention = bytes_per_value * (2 * queries + 2 * keys)
    if layer.normalizes_queries:
        attention += _norm_bytes(layer.norm, bytes_per_value, is_input=False) * (
            queries + (facts.key_value_size or queries)
        )
    mlp = bytes_per_value * layer.mlp * intermediate_size(facts)
    norms = 2 * _norm_bytes(layer.norm, bytes_per_value, is_input=True)
    norms += layer.result_norms * _norm_bytes(layer.norm, bytes_per_value, is_input=False)
    saved = attention + mlp + (norms + layer.dropouts) * hidden
    return saved if is_known(facts) else round(UNKNOWN_ARCHITECTURE_FACTOR * saved)


def backward_bytes(facts: ModelFacts, bytes_per_value: int) -> int:
    """Return the bytes of gradients that exist at a time in the backward pass of a layer, of one token.

    Measured: those of the projections of the MLP and of the hidden states.
    """
    layer = LAYERS.get(facts.model_type) or _guessed(facts)
    return bytes_per_value * ((3 if layer.mlp is Mlp.GATED else 2) * intermediate_size(facts) + facts.hidden_size)


def intermediate_size(facts: ModelFacts) -> int:
    """Return the width of the MLP; four times the hidden size where config.json does not state it, as in GPT-2."""
    return facts.intermediate_size or 4 * facts.hidden_size


def _guessed(facts: ModelFacts) -> Layer:
    is_gated = any("gate" in name for name, _ in facts.linear)
    return Layer(_RMS_NORM, mlp=Mlp.GATED, normalizes_queries=True) if is_gated else _BERT


def _norm_bytes(norm: str, bytes_per_value: int, *, is_input: bool) -> int:
    """Return the bytes that a normalization saves of one element.

    `is_input`: its result is the input of a linear layer, which saves it. RMSNorm computes in 32 bit, and saves the
    input and the normalized values.
    """
    result = bytes_per_value if is_input else 0
    if norm == _LAYER_NORM:
        return bytes_per_value + result
    return 4 + (4 if norm == _GEMMA_RMS_NORM else bytes_per_value) + result
