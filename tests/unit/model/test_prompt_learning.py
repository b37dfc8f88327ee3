"""Virtual tokens: predictions for the text change, callers do not see them, and the export is what was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

import tiny_models
from factories import make_job
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_api.validation import InvalidJobError, parse_job
from finetune_trainer.data.collate import Collator
from finetune_trainer.data.prepare import lighter_methods
from finetune_trainer.errors import BadConfigError
from finetune_trainer.evaluate.generate import answers
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.inspect import inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.tasks import TASKS, language
from train_configs import train_config

TASK = TASKS[Task.CAUSAL_LM]
COUNT = 6
FAMILIES = ("llama-tied", "gpt2", "gpt_neox", "qwen2", "gemma")
BLOCKS: dict[str, dict[str, Any]] = {
    "prefix": {"prefixTuning": {"virtualTokens": COUNT}},
    "projected prefix": {"prefixTuning": {"virtualTokens": COUNT, "projection": True}},
    "MLP": {"pTuning": {"virtualTokens": COUNT}},
    "LSTM": {"pTuning": {"virtualTokens": COUNT, "encoderReparameterization": "LSTM", "encoderHiddenSize": 24}},
}
EVERY = pytest.mark.parametrize("block", BLOCKS)
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 0, 0]])
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


class Rows:
    """A split of rows of different length."""

    lengths = np.array([30, 12, 7], np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.arange(self.lengths[index], dtype=np.int64) + 30 + index
        return {"input_ids": ids, "labels": ids}


def fresh(base: Path) -> Any:
    return load_model(base, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=3)


def config_for(base: Path, block: str) -> Any:
    return train_config(
        model={"uri": f"file://{base}"},
        method=BLOCKS[block],
        training={"gradientCheckpointing": False},
        output={"formats": ["Adapter"]},
        prepared={"task": Task.CAUSAL_LM, "labels": ()},
    )


def tuned(base: Path, block: str) -> Any:
    spec = config_for(base, block).spec.method
    return METHODS[spec.name].apply(fresh(base), spec.block, TASK, seed=1).eval()


def logits(model: Any, mask: torch.Tensor = MASK) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=mask).logits[mask > 0]


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_encoder_is_trained_and_counted_and_it_changes_the_logits_of_the_text(
    family: str, block: str, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    model, spec = tuned(base, block), config_for(base, block).spec.method
    trained = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
    assert all(name.startswith("prompt_encoder.default.") for name in trained)
    expected = METHODS[spec.name].parameters(inspect_model(base, "base"), spec.block)
    assert (sum(trained.values()), expected.added) == (expected.trained, expected.trained)
    assert logits(model).shape == logits(fresh(base)).shape
    assert not torch.allclose(logits(model), logits(fresh(base)), atol=1e-4)
    METHODS[spec.name].check(base, spec.block, TASK)
    model.train()
    outputs = model(input_ids=IDS, attention_mask=MASK).logits[MASK > 0]
    outputs.logsumexp(-1).sum().backward()
    assert all(value.grad.any() for value in model.parameters() if value.requires_grad)


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_pieces_and_answers_use_the_virtual_tokens_once(
    family: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    model, tokenizer = tuned(base, block), load_tokenizer(base)
    rows: Any = Rows()
    collate = Collator(0, Task.CAUSAL_LM)
    whole = TASK.row_losses(model, rows, collate, lambda _: None)
    monkeypatch.setitem(language.LOGITS_BYTES, "cpu", 4 * 5 * int(model.config.vocab_size))
    np.testing.assert_allclose(TASK.row_losses(model, rows, collate, lambda _: None), whole, rtol=1e-5)

    prompt, length = "the quick brown fox", 8
    (answer,) = answers(
        model, tokenizer, [prompt], max_new_tokens=length, seed=1, report=lambda _: None, virtual_tokens=COUNT
    )
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    start = ids.shape[1]
    for _ in range(length):
        with torch.no_grad():
            step = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, step), dim=1)
        if int(step) == tokenizer.eos_token_id:
            break
    assert answer == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@EVERY
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_exported_adapter_is_the_trained_model_here_and_for_any_user_of_peft(
    family: str, block: str, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    config, model = config_for(base, block), tuned(base, block)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.3 * torch.randn_like(value))
    copies = {name: value.clone() for name, value in weights.items()}
    trained = logits(model)
    for value in weights.values():  # as under ZeRO-3, where the model's own are empty
        value.zero_()
    write_folder(ArtifactFormat.ADAPTER, model, copies, tmp_path / "adapter", config=config, base=base)
    method = METHODS[config.spec.method.name]
    again = reload_adapter(fresh(base), tmp_path / "adapter", "a", config.prepared, method)
    torch.testing.assert_close(logits(again), trained)
    anybody = PeftModel.from_pretrained(fresh(base), str(tmp_path / "adapter"))
    with torch.no_grad():
        found = anybody.eval()(input_ids=IDS, attention_mask=MASK).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found[MASK > 0], trained)


def test_prefix_tuning_is_rejected_unless_gradient_checkpointing_is_off(tmp_path: Path) -> None:
    """If the first part fails because transformers keeps the cache, the row of prefixTuning can allow it."""
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    model = tuned(base, "prefix").train()
    model(input_ids=IDS)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(RuntimeError, match="must match the size"):  # the mask has the prefix, the keys have not
        model(input_ids=IDS)

    for training in ({}, {"gradientCheckpointing": True}):
        job = make_job(
            data={"format": "Text"}, method=BLOCKS["prefix"], training=training, output={"formats": ["Adapter"]}
        )
        with pytest.raises(InvalidJobError) as error:
            parse_job(job)
        assert "write gradientCheckpointing: false, because the default is true" in str(error.value)


def test_a_model_whose_layers_do_not_take_the_prefix_is_rejected_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    spec = config_for(base, "prefix").spec.method
    kind = type(fresh(base))

    def of_another_shape(self: Any, *_: Any, **others: Any) -> Any:
        raise RuntimeError("Sizes of tensors must match except in dimension 2")

    monkeypatch.setattr(kind, "forward", of_another_shape)
    with pytest.raises(BadConfigError, match=r"spec\.method\.prefixTuning cannot be applied to LlamaFor") as error:
        METHODS[spec.name].check(base, spec.block, TASK)
    assert "spec.method.promptTuning" in error.value.advice


def test_prefix_tuning_is_not_suggested_with_gradient_checkpointing(tmp_path: Path) -> None:
    facts = inspect_model(tiny_models.save_tiny("llama", tmp_path / "base"), "base")
    suggested = {
        checkpointing: lighter_methods(
            facts, 10**9, Task.CAUSAL_LM, (ArtifactFormat.ADAPTER,), gradient_checkpointing=checkpointing
        )
        for checkpointing in (False, True)
    }
    assert "prefixTuning" in suggested[False]
    assert "prefixTuning" not in suggested[True]
