"""The optimizer of a training has the parameter groups of transformers' Trainer."""

from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from finetune_trainer.train.engine import adamw
from train_configs import train_config

TINY: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**TINY, intermediate_size=8)),
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(**TINY, intermediate_size=8, embedding_size=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=8)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_parameters_have_weight_decay(name: str) -> None:
    model = MODELS[name]()
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    config = train_config(training={"weightDecay": 0.1})
    optimizer = adamw(model, config.spec.training)
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    trained = [key for key, parameter in model.named_parameters() if parameter is not frozen]
    assert groups == [[key for key in trained if key in decayed], [key for key in trained if key not in decayed]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {config.spec.training.learning_rate}
    assert isinstance(optimizer, torch.optim.AdamW)
