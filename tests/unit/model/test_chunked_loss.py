"""The loss of a language model in parts of its logits."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, GPT2Config, GraniteConfig, LlamaConfig

from finetune_api.v1alpha1 import Task
from finetune_trainer.errors import BadConfigError
from finetune_trainer.model.chunk_check import check_chunks
from finetune_trainer.tasks import IGNORED, TASKS, chunked_loss
from finetune_trainer.tasks.chunked_loss import ChunkingError, DeferredLogits, defer_logits
from peak_memory import PeakMemory

TASK = TASKS[Task.CAUSAL_LM]
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(vocab_size=60, **SIZES, num_key_value_heads=1),
    "llama, tied": LlamaConfig(vocab_size=60, **SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2),
    "gemma": GemmaConfig(vocab_size=60, **SIZES, head_dim=8, num_key_value_heads=1),
}


def batch_of(*, with_prompt: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 7:] = IGNORED
    if with_prompt:
        labels[1, :5] = IGNORED
    labels[2] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor], smoothing: float) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss = TASK.loss(model(**TASK.inputs(batch)).logits, batch, smoothing=smoothing)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 60 * 4, 1 << 26])
def test_loss_and_gradients_are_those_of_all_logits(monkeypatch, family, smoothing, chunk_bytes):
    monkeypatch.setattr(chunked_loss, "LOSS_CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    model, batch = AutoModelForCausalLM.from_config(FAMILIES[family]).eval(), batch_of()
    loss, gradients = loss_and_gradients(model, batch, smoothing)
    names = list(model.state_dict())
    defer_logits(model)
    found, chunked = loss_and_gradients(model, batch, smoothing)
    assert found == pytest.approx(loss, rel=1e-6)
    assert list(model.state_dict()) == names
    for name, gradient in gradients.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_without_targets_has_no_loss_and_all_gradients():
    model, batch = AutoModelForCausalLM.from_config(FAMILIES["llama"]), batch_of()
    batch["labels"].fill_(IGNORED)
    defer_logits(model)
    loss, gradients = loss_and_gradients(model, batch, 0.0)
    assert loss == 0.0
    assert all(not gradient.any() for gradient in gradients.values())


def test_an_index_computes_the_logits():
    model, batch = AutoModelForCausalLM.from_config(FAMILIES["llama"]).eval(), batch_of()
    with torch.inference_mode():
        plain = model(**TASK.inputs(batch)).logits
        defer_logits(model)
        deferred = model(**TASK.inputs(batch)).logits
        assert isinstance(deferred, DeferredLogits)
        assert (deferred.shape, deferred.dim()) == (plain.shape, plain.dim())
        part = deferred[:, :-1]
        assert isinstance(part, DeferredLogits), "methods with virtual tokens cut these off"
        wanted = batch["labels"][:, 1:] != IGNORED
        torch.testing.assert_close(part[wanted], plain[:, :-1][wanted])
        torch.testing.assert_close(deferred[0], plain[0])


def test_a_chunk_is_the_largest_tensor_over_the_vocabulary(monkeypatch):
    monkeypatch.setattr(chunked_loss, "LOSS_CHUNK_BYTES", 4 * 60 * 5)
    sizes: list[int] = []
    plain = functional.linear

    def recorded(values, weight, bias=None):
        if len(weight) == 60:
            sizes.append(len(values))
        return plain(values, weight, bias)

    monkeypatch.setattr(functional, "linear", recorded)
    model, batch = AutoModelForCausalLM.from_config(FAMILIES["llama"]), batch_of()
    defer_logits(model)
    TASK.loss(model(**TASK.inputs(batch)).logits, batch)
    wanted = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert (max(sizes), sum(sizes)) == (5, wanted), "only tokens that carry loss are computed"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_logits_of_a_chunk_exist_once(monkeypatch, smoothing):
    chunk = 4 * 4096 * 16
    monkeypatch.setattr(chunked_loss, "LOSS_CHUNK_BYTES", chunk)
    head = nn.Linear(8, 4096, bias=False).requires_grad_(False)
    hidden = torch.randn(1, 64, 8, requires_grad=True)
    targets = torch.randint(0, 4096, (1, 64))
    with PeakMemory() as memory:
        DeferredLogits(hidden, head).loss(targets, smoothing=smoothing).backward()
    assert chunk < memory.peak < 1.2 * chunk


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_output_layers_are_accepted(family):
    config = FAMILIES[family]
    check_chunks(type(AutoModelForCausalLM.from_config(config)), config, "s3://bucket/model", TASK)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(vocab_size=60, **SIZES, head_dim=8, num_key_value_heads=1, final_logit_softcapping=1.0),
        GraniteConfig(vocab_size=60, **SIZES, logits_scaling=4.0),
    ],
    ids=["soft cap", "scaling"],
)
def test_models_that_change_their_logits_are_refused(config):
    with pytest.raises(BadConfigError, match=r"chunkedLoss must be false for this base model: \w+, the class"):
        check_chunks(type(AutoModelForCausalLM.from_config(config)), config, "s3://bucket/model", TASK)


def test_an_output_layer_with_an_adapter_is_refused():
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ChunkingError, match="its output layer is a Sequential, not a plain linear layer"):
        defer_logits(model)
