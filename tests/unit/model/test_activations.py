"""What the layers of each known architecture keep for the backward pass, as torch saves it, and as it is estimated."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from finetune_trainer.model import activations
from finetune_trainer.model.activations import LAYERS, UNKNOWN_ARCHITECTURE_FACTOR, guess_note
from finetune_trainer.model.inspect import ModelFacts, _first, _head_size, _heads, _intermediate_size
from saved_tensors import saved_bytes

ROWS, TOKENS, HIDDEN = 2, 64, 256
DECODER = {
    "vocab_size": 32,
    "hidden_size": HIDDEN,
    "intermediate_size": 896,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# On a GPU, sdpa does not keep the scores with dropout either. The CPU has no such kernel.
ENCODER = {
    "vocab_size": 32,
    "hidden_size": HIDDEN,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "attention_probs_dropout_prob": 0.0,
}
CLASSIFIER = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (CAUSAL, DECODER),
    "mistral": (CAUSAL, DECODER),
    "qwen2": (CAUSAL, DECODER),
    "qwen3": (CAUSAL, DECODER | {"head_dim": 64}),
    "smollm3": (CAUSAL, DECODER),
    "phi3": (CAUSAL, DECODER),
    "gemma": (CAUSAL, DECODER | {"head_dim": 32}),
    "gemma3_text": (CAUSAL, DECODER | {"head_dim": 32}),
    "gpt2": (CAUSAL, {"vocab_size": 32, "n_embd": HIDDEN, "n_head": 8, "attn_pdrop": 0.0}),
    "bert": (CLASSIFIER, ENCODER),
    "roberta": (CLASSIFIER, ENCODER),
    "xlm-roberta": (CLASSIFIER, ENCODER),
    "electra": (CLASSIFIER, ENCODER | {"embedding_size": HIDDEN}),
    "distilbert": (
        CLASSIFIER,
        {"vocab_size": 32, "dim": HIDDEN, "hidden_dim": 1024, "n_heads": 8, "attention_dropout": 0.0},
    ),
}
UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": (CAUSAL, DECODER | {"attention_dropout": 0.0, "intermediate_size": 1024}),
    "olmo2": (CAUSAL, DECODER),
    "modernbert": (CLASSIFIER, ENCODER | {"pad_token_id": 0}),
}
"""Architectures that have to be guessed."""


def saved_of(kind: str, auto: str, sizes: dict[str, Any], layers: int, dtype: torch.dtype, *, masked: bool) -> int:
    config = transformers.AutoConfig.for_model(kind, **sizes)
    config.num_hidden_layers, config.use_cache = layers, False
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * layers
    model = getattr(transformers, auto).from_config(config, dtype=dtype).train()
    mask = torch.ones((ROWS, TOKENS), dtype=torch.long)
    mask[0, -5:] = 0 if masked else 1
    return saved_bytes(model, input_ids=torch.ones((ROWS, TOKENS), dtype=torch.long), attention_mask=mask)


def measured(kind: str, auto: str, sizes: dict[str, Any], dtype: torch.dtype, *, masked: bool) -> float:
    """Bytes per layer and token."""
    one, three = (saved_of(kind, auto, sizes, layers, dtype, masked=masked) for layers in (1, 3))
    return (three - one) / 2 / (ROWS * TOKENS)


def facts_of(kind: str, sizes: dict[str, Any]) -> ModelFacts:
    config = transformers.AutoConfig.for_model(kind, **sizes).to_dict()
    is_gated = config.get("num_key_value_heads") is not None and kind not in {"gpt_neox"}
    return ModelFacts(
        model_type=kind,
        is_decoder=True,
        is_encoder_decoder=False,
        parameters=0,
        largest_parameter=0,
        linear=(("layers.0.mlp.gate_proj.weight", (1, 1)),) if is_gated else (),
        hidden_size=HIDDEN,
        layers=1,
        vocabulary=32,
        positions=None,
        key_value_size=_head_size(config) * (_first(config, "num_key_value_heads") or _heads(config)),
        attention_size=_head_size(config) * _heads(config),
        intermediate_size=_intermediate_size(config),
    )


def test_every_known_architecture_is_measured() -> None:
    assert {*CONFIGS} == {*LAYERS}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_estimated_activations_are_those_that_torch_saves(kind: str, dtype: torch.dtype, masked: bool) -> None:
    """The attention mask is counted elsewhere. The CPU stores the masks of dropouts in the type of the values, and
    Phi-3 slices one projection, which is kept as a whole."""
    auto, sizes = CONFIGS[kind]
    found = measured(kind, auto, sizes, dtype, masked=masked)
    found -= TOKENS * dtype.itemsize * masked + LAYERS[kind].dropouts * HIDDEN * (dtype.itemsize - 1)
    estimate = activations.saved_bytes(facts_of(kind, sizes), dtype.itemsize, has_mask=masked)
    assert estimate == pytest.approx(found, rel=0.1 if kind == "phi3" else 0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", UNKNOWN)
def test_guessed_activations_are_not_less_than_those_that_torch_saves(kind: str, dtype: torch.dtype) -> None:
    auto, sizes = UNKNOWN[kind]
    facts = facts_of(kind, sizes)
    found, estimate = (
        measured(kind, auto, sizes, dtype, masked=False),
        activations.saved_bytes(facts, dtype.itemsize, has_mask=False),
    )
    assert 0.95 * found <= estimate <= 2.2 * found
    assert f"does not know the architecture {kind}" in guess_note(facts)
    assert f"times {UNKNOWN_ARCHITECTURE_FACTOR:g}" in guess_note(facts)
    assert guess_note(replace(facts, model_type="llama")) == ""
