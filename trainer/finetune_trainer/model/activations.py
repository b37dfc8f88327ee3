"""What a layer of a transformer keeps for its backward pass on a GPU, by architecture. Pure.

Counted from the modules of transformers with sdpa, which keeps queries, keys, values and its result, and a number for
each head and token, but not the scores (Dao et al. 2022, arXiv 2205.14135). `tests/unit/model/test_activations.py`
compares the result with what torch saves for each of `LAYERS`. Linear layers keep their inputs also if they are frozen
here, because most of them have an adapter; without one, a frozen layer keeps less.
"""

from dataclasses import dataclass

from .inspect import ModelFacts

GUESS = 1.5
"""Factor of the activations of an architecture that is not in `LAYERS`."""

_RMS, _RMS_FLOAT, _LAYER_NORM = "RMSNorm", "RMSNorm in 32 bit", "LayerNorm"


@dataclass(frozen=True)
class Layer:
    """How a layer of an architecture is built."""

    norm: str
    mlp: int = 2
    """Values that the MLP keeps for each of its width: 2 with one kernel for the activation function, 4 if it
    multiplies two projections, 5 if the activation function consists of several operations, as in GPT-2."""
    result_norms: int = 0
    """Normalizations of what a block adds to the hidden states, besides the two before or after the blocks."""
    normalizes_queries: bool = False
    """Whether queries and keys are normalized too."""
    dropouts: int = 0
    """Dropouts of the hidden states, with a mask of one byte per value."""

    @property
    def is_gated(self) -> bool:
        """Whether the MLP multiplies two projections."""
        return self.mlp == _GATED


_GATED = 4
_LLAMA = Layer(_RMS, mlp=_GATED)
_BERT = Layer(_LAYER_NORM, dropouts=2)

LAYERS: dict[str, Layer] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "qwen3": Layer(_RMS, mlp=_GATED, normalizes_queries=True),
    "gemma": Layer(_RMS_FLOAT, mlp=_GATED),
    "gemma3_text": Layer(_RMS_FLOAT, mlp=_GATED, result_norms=2, normalizes_queries=True),
    "gpt2": Layer(_LAYER_NORM, mlp=5, dropouts=2),
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
    like = "a gated MLP, like Llama" if _guessed(facts).is_gated else "a plain MLP, like BERT"
    return (
        f"the estimate does not know the architecture {facts.model_type}: its activations are those of layers with "
        f"{like}, times {GUESS:g}"
    )


def kept_values(facts: ModelFacts, value: int, *, has_mask: bool) -> int:
    """Return the bytes that one layer keeps of one token, `value` bytes each. Without the attention mask.

    With a mask, sdpa gets keys and values once for each query head.
    """
    layer = LAYERS.get(facts.model_type) or _guessed(facts)
    hidden = facts.hidden_size
    queries = facts.attention_size or hidden
    keys = queries if has_mask else facts.key_value_size or queries
    attention = value * (2 * queries + 2 * keys)
    if layer.normalizes_queries:
        attention += _norm_bytes(layer.norm, value, is_input=False) * (queries + (facts.key_value_size or queries))
    mlp = value * layer.mlp * intermediate_size(facts)
    norms = 2 * _norm_bytes(layer.norm, value, is_input=True)
    norms += layer.result_norms * _norm_bytes(layer.norm, value, is_input=False)
    kept = attention + mlp + (norms + layer.dropouts) * hidden
    return kept if is_known(facts) else round(GUESS * kept)


def backward_values(facts: ModelFacts, value: int) -> int:
    """Return the bytes of gradients that exist at a time in the backward pass of a layer, of one token.

    Measured: those of the projections of the MLP and of the hidden states.
    """
    layer = LAYERS.get(facts.model_type) or _guessed(facts)
    return value * ((3 if layer.is_gated else 2) * intermediate_size(facts) + facts.hidden_size)


def intermediate_size(facts: ModelFacts) -> int:
    """Return the width of the MLP; four times the hidden size where config.json does not state it, as in GPT-2."""
    return facts.intermediate_size or 4 * facts.hidden_size


def _guessed(facts: ModelFacts) -> Layer:
    is_gated = any("gate" in name for name, _ in facts.linear)
    return Layer(_RMS, mlp=_GATED, normalizes_queries=True) if is_gated else _BERT


def _norm_bytes(norm: str, value: int, *, is_input: bool) -> int:
    """Return the bytes that a normalization keeps of one element.

    `is_input`: its result is the input of a linear layer, which keeps it. RMSNorm computes in 32 bit, and keeps the
    input and the normalized values.
    """
    result = value if is_input else 0
    if norm == _LAYER_NORM:
        return value + result
    return 4 + (4 if norm == _RMS_FLOAT else value) + result
