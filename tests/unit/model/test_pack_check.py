"""The prepare stage refuses packs for models that mix the examples of a row, whatever their name."""

from typing import Any

import pytest
import torch
import transformers

from finetune_api.v1alpha1 import Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.model import pack_check, small_models
from finetune_trainer.model.pack_check import check_packs
from finetune_trainer.tasks import TASKS

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
ONE_LINEAR = {"layer_types": ["full_attention", "linear_attention"], "head_dim": 8}
OPT = {"vocab_size": 400, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KEEPS_APART: list[tuple[str, str, dict[str, Any]]] = [
    ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES),
    ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 64}),
    ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 8, "sliding_window": 4}),
    # Sizes of models in use, which are made narrow.
    ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 8, "vocab_size": 128_256, "pad_token_id": 128_004}),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {}),
    ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {}),
]
MIXES: list[tuple[str, str, dict[str, Any]]] = [
    ("MambaForCausalLM", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    ("MambaForCausalLM", "MambaConfig", {}),
    ("Qwen3NextForCausalLM", "Qwen3NextConfig", GROUPED | LINEAR | EXPERTS | ONE_LINEAR),
    ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ("OPTForCausalLM", "OPTConfig", OPT),
    ("BertLMHeadModel", "BertConfig", SIZES | {"is_decoder": True}),
]


def check(model: str, config: str, fields: dict[str, Any], *, capacity: int = 128) -> None:
    made = getattr(transformers, config)(**fields)
    check_packs(getattr(transformers, model), made, "s3://models/base", TASKS[Task.CAUSAL_LM], capacity=capacity)


@pytest.mark.parametrize(("model", "config", "fields"), KEEPS_APART)
@pytest.mark.parametrize("capacity", [8, 128])
def test_models_whose_attention_follows_the_positions_can_be_packed(
    model: str, config: str, fields: dict[str, Any], capacity: int
) -> None:
    state = torch.get_rng_state()
    check(model, config, fields, capacity=capacity)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("model", "config", "fields"), MIXES)
def test_models_that_mix_examples_are_refused_with_the_difference(
    model: str, config: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(
        BadConfigError, match=r"must not be Packed .* does not keep the examples of a pack apart"
    ) as error:
        check(model, config, fields)
    assert "spec.training.batching: Padded" in error.value.advice


def test_a_model_that_takes_no_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = transformers.GPT2LMHeadModel.forward

    def without_positions(self: Any, input_ids: Any, attention_mask: Any = None) -> Any:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", without_positions)
    with pytest.raises(BadConfigError, match=r"cannot compute several examples in one row: TypeError: .*position_ids"):
        check("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4})


def test_a_model_that_cannot_be_built_or_is_not_sensitive_enough_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that could not fail would prove nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(small_models, "_MAX_PARAMETERS", 10)
        with pytest.raises(BadConfigError, match="could not be checked"):
            check("LlamaForCausalLM", "LlamaConfig", GROUPED)
    monkeypatch.setattr(pack_check, "_difference", lambda *_: 0.0)
    with pytest.raises(BadConfigError, match="could not be checked"):
        check("MambaForCausalLM", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2})
