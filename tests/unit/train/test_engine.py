"""The optimizer of a training has the parameter groups of transformers' Trainer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from finetune_api.v1alpha1 import Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.layers import layer_depths
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.engine import make_optimizer, partitioned_models
from train_configs import train_config

TINY: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2}
MODELS: dict[str, Callable[[int], Any]] = {
    "bert": lambda layers: BertForSequenceClassification(
        BertConfig(**TINY, num_hidden_layers=layers, intermediate_size=8)
    ),
    "albert": lambda layers: AlbertForSequenceClassification(
        AlbertConfig(**TINY, num_hidden_layers=layers, intermediate_size=8, embedding_size=4)
    ),
    "gpt2": lambda layers: GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=layers, n_head=2)),
    "llama": lambda layers: LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=layers, intermediate_size=8)),
    "deberta-v2": lambda layers: DebertaV2ForSequenceClassification(
        DebertaV2Config(
            **TINY,
            num_hidden_layers=layers,
            intermediate_size=8,
            pooler_hidden_size=8,
            relative_attention=True,
            norm_rel_ebd="layer_norm",
            conv_kernel_size=3,
        )
    ),
    "opt": lambda layers: OPTForCausalLM(
        OPTConfig(**TINY, num_hidden_layers=layers, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=16)
    ),
    "xlnet": lambda layers: XLNetForSequenceClassification(
        XLNetConfig(vocab_size=16, d_model=8, n_layer=layers, n_head=2, d_inner=8)
    ),
    "t5": lambda layers: T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=layers)
    ),
}
"""By number of layers."""


@pytest.mark.parametrize("name", MODELS)
def test_the_same_parameters_have_weight_decay(name: str) -> None:
    model = MODELS[name](1)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    config = train_config(training={"weightDecay": 0.1})
    optimizer = make_optimizer(model, config.spec.training)
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    trained = [key for key, parameter in model.named_parameters() if parameter is not frozen]
    assert groups == [[key for key in trained if key in decayed], [key for key in trained if key not in decayed]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {config.spec.training.learning_rate}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


DEPTHS: dict[str, dict[str, int]] = {
    "bert": {
        "bert.embeddings.LayerNorm.weight": 3,
        "bert.encoder.layer.0.output.dense.bias": 2,
        "bert.encoder.layer.1.output.dense.bias": 1,
        "bert.pooler.dense.weight": 0,
        "classifier.weight": 0,
    },
    "llama": {
        "model.embed_tokens.weight": 3,
        "model.layers.1.mlp.up_proj.weight": 1,
        "model.norm.weight": 0,
        "lm_head.weight": 0,
    },
    "gpt2": {
        "transformer.wte.weight": 3,
        "transformer.wpe.weight": 3,
        "transformer.h.0.ln_1.weight": 2,
        "transformer.ln_f.bias": 0,
    },
    "deberta-v2": {
        "deberta.embeddings.LayerNorm.weight": 3,
        "deberta.encoder.rel_embeddings.weight": 3,
        "deberta.encoder.LayerNorm.weight": 3,
        "deberta.encoder.layer.0.output.dense.bias": 2,
        "deberta.encoder.conv.conv.weight": 2,
        "deberta.encoder.layer.1.output.dense.bias": 1,
        "pooler.dense.weight": 0,
    },
    "opt": {
        "model.decoder.embed_tokens.weight": 3,
        "model.decoder.embed_positions.weight": 3,
        "model.decoder.layers.1.fc1.weight": 1,
        "model.decoder.final_layer_norm.weight": 0,
    },
}
"""With two layers: name -> power of the decay."""


@pytest.mark.parametrize("name", DEPTHS)
def test_the_learning_rate_decays_from_the_head_down(name: str) -> None:
    model = MODELS[name](2)
    config = train_config(
        training={"weightDecay": 0.1, "learningRate": 1e-3}, method={"full": {"layerLearningRateDecay": 0.5}}
    )
    factors = METHODS["full"].rate_factors(model, config.spec.method.block)
    optimizer = make_optimizer(model, config.spec.training, factors)
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    rates = {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    assert {key: rates[key] for key in DEPTHS[name]} == pytest.approx(
        {key: 1e-3 * 0.5**depth for key, depth in DEPTHS[name].items()}
    )
    assert rates.keys() == set(names.values())
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)
    assert all(group["params"] for group in groups)
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    with_decay = {names[parameter] for group in groups for parameter in group["params"] if group["weight_decay"]}
    assert with_decay == decayed & rates.keys()
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([rate / 2 for rate in schedule.base_lrs])


REFUSED: dict[str, str] = {
    "albert": "AlbertForSequenceClassification has no list of transformer layers",
    "t5": "T5ForConditionalGeneration has two lists of transformer layers",
    "xlnet": "the order of the modules of XLNetForSequenceClassification is not known",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_of_which_the_order_of_modules_is_not_known_has_one_rate(name: str) -> None:
    with pytest.raises(BadConfigError, match=f"layerLearningRateDecay must be absent, because {REFUSED[name]}"):
        layer_depths(MODELS[name](2))


def test_the_depths_are_the_same_while_zero_3_partitions_new_models() -> None:
    model = MODELS["bert"](2)
    expected = layer_depths(model)
    state = torch.get_rng_state()
    with partitioned_models(train_config(deepspeed={"zeroStage": 3})):
        assert layer_depths(model) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "kind"), [("AdamW", torch.optim.AdamW), ("RAdam", torch.optim.RAdam)])
def test_the_optimizer_has_the_settings_of_the_job(name: str, kind: type) -> None:
    options = {"name": name, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    config = train_config(training={"optimizer": options, "weightDecay": 0.1})
    optimizer = make_optimizer(MODELS["bert"](1), config.spec.training)
    assert type(optimizer) is kind
    assert all((group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6) for group in optimizer.param_groups)
    assert all(group.get("decoupled_weight_decay", True) for group in optimizer.param_groups)


@pytest.mark.parametrize("targets", [{}, {"targetModules": ["q_proj", "embed_tokens"]}], ids=["linear", "embeddings"])
def test_the_matrices_b_of_lora_have_the_ratio_of_their_learning_rate_at_every_step(targets: dict[str, Any]) -> None:
    config = train_config(
        training={"weightDecay": 0.1},
        method={"lora": {"learningRateRatio": 16, **targets}},
        prepared={"task": Task.CAUSAL_LM},
    )
    method, rate = config.spec.method, config.spec.training.peak_learning_rate
    model = METHODS["lora"].apply(MODELS["llama"](1), method.block, TASKS[Task.CAUSAL_LM], seed=1)
    optimizer = make_optimizer(model, config.spec.training, METHODS["lora"].rate_factors(model, method.block))
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    factors = {"lora_A": 1, "lora_B": 16, "lora_embedding_A": 1, "lora_embedding_B": 16}
    assert rates == {name: factors[name.split(".")[-3 + name.endswith("default")]] * rate for name in trained}
    assert len({*rates.values()}) == 2
    assert optimizer.param_groups[0]["lr"] == rate, "the logged rate is that of the job"
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    halved = {group["lr"] for group in optimizer.param_groups}
    assert halved == {rate / 2, 8 * rate}
