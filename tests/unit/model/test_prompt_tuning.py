"""Prompt tuning: the virtual tokens change the predictions for the text, and are not visible to callers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import tiny_models
from factories import make_job
from finetune_api.crd import CEL_RULES
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_api.v1alpha1.methods.prompt_tuning import PromptTuning
from finetune_api.validation import InvalidJobError, parse_job
from finetune_trainer.data.collate import Collator
from finetune_trainer.errors import BadConfigError, ExportUnusableError
from finetune_trainer.evaluate.generate import answers
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.inspect import inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.tasks import TASKS, language
from train_configs import train_config

METHOD = METHODS["promptTuning"]
TASK = TASKS[Task.CAUSAL_LM]
COUNT = 6
FAMILIES = ("llama-tied", "gpt2", "gpt_neox", "qwen2", "gemma")
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


def config_for(base: Path) -> TrainerConfig:
    return train_config(
        model={"uri": f"file://{base}"},
        method={"promptTuning": {"virtualTokens": COUNT}},
        output={"formats": ["Adapter"]},
        prepared={"task": Task.CAUSAL_LM, "labels": ()},
    )


def tuned(base: Path) -> Any:
    return METHOD.apply(fresh(base), PromptTuning(virtual_tokens=COUNT), TASK, seed=1).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_text_after_the_embeddings_and_only_these_are_trained(
    family: str, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    model, plain = tuned(base), fresh(base).eval()
    ((name, embeddings),) = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    assert name == "prompt_encoder.default.embedding.weight"
    block = PromptTuning(virtual_tokens=COUNT)
    assert embeddings.numel() == METHOD.parameters(inspect_model(base, "base"), block).trained
    text = plain.get_input_embeddings()(IDS)
    with torch.no_grad():
        inputs = torch.cat((embeddings.expand(2, -1, -1), text), dim=1)
        mask = torch.cat((torch.ones(2, COUNT, dtype=torch.long), MASK), dim=1)
        expected = plain(inputs_embeds=inputs, attention_mask=mask).logits[:, COUNT:]
    found = logits(model)
    torch.testing.assert_close(found[MASK > 0], expected[MASK > 0])
    assert not torch.allclose(found, logits(plain), atol=1e-4), "virtual tokens that change nothing would pass"
    known = plain.get_input_embeddings()(torch.arange(plain.config.vocab_size))
    assert all((row == known).all(dim=1).any() for row in embeddings), "they begin as tokens of the vocabulary"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_pieces_and_answers_use_the_virtual_tokens_once(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    model, tokenizer = tuned(base), load_tokenizer(base)
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


def exported(base: Path, folder: Path) -> Any:
    """A model whose virtual tokens are not in the vocabulary, exported to the folder."""
    model = tuned(base)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(torch.randn_like(value))
    copies = {name: value.clone() for name, value in weights.items()}
    write_folder(ArtifactFormat.ADAPTER, model, copies, folder, config=config_for(base), base=base)
    return model


def test_the_exported_adapter_is_the_trained_model_here_and_with_plain_peft(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    trained = logits(exported(base, tmp_path / "adapter"))
    prepared = config_for(base).prepared
    assert prepared is not None
    torch.testing.assert_close(
        logits(reload_adapter(fresh(base), tmp_path / "adapter", "a", prepared, METHOD)), trained
    )
    anybody = PeftModel.from_pretrained(fresh(base), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(anybody)[:, COUNT:], trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {}, "lacks weights of its adapter"),
        (lambda found: {name: value[:-1] for name, value in found.items()}, "does not fit its base model"),
        (lambda found: found | {"more": torch.zeros(1)}, "that its adapter does not use"),
    ],
)
def test_a_damaged_adapter_is_rejected(change: Any, message: str, tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    exported(base, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(path)).items()}, path)
    prepared = config_for(base).prepared
    assert prepared is not None
    with pytest.raises(ExportUnusableError, match=message):
        reload_adapter(fresh(base), tmp_path / "adapter", "s3://bucket/adapter", prepared, METHOD)


def test_the_embeddings_start_from_the_tokens_of_a_text_which_is_repeated_and_never_truncated(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    ids = load_tokenizer(base)("the quick fox")["input_ids"]
    assert 1 < len(ids) < COUNT
    block = PromptTuning(virtual_tokens=COUNT, initial_text="the quick fox")
    METHOD.check(base, block, TASK)
    model = METHOD.apply(fresh(base), block, TASK, seed=1)
    repeated = torch.tensor((ids * COUNT)[:COUNT])
    expected = fresh(base).get_input_embeddings()(repeated)
    torch.testing.assert_close(model.prompt_encoder["default"].embedding.weight, expected)

    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    METHOD.save_adapter(model, weights, tmp_path / "adapter", base="org/base", revision=None)
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert described["tokenizer_name_or_path"] == "org/base"
    assert METHOD.load_adapter(fresh(base), tmp_path / "adapter", "a").missing == set()

    with pytest.raises(
        BadConfigError, match=rf"initialText must have between 1 and 2 tokens .* not {len(ids)}"
    ) as error:
        METHOD.check(base, PromptTuning(virtual_tokens=2, initial_text="the quick fox"), TASK)
    assert f"set virtualTokens to {len(ids)}" in error.value.advice


@pytest.mark.parametrize("output", [{}, {"formats": ["Merged"]}, {"formats": ["Merged", "Adapter"]}])
def test_a_merged_model_is_rejected_even_as_the_default(output: dict[str, Any]) -> None:
    job = make_job(data={"format": "Text"}, method={"promptTuning": {}}, output=output)
    with pytest.raises(InvalidJobError) as error:
        parse_job(job)
    assert "spec.output.formats must not have Merged without spec.method.full" in str(error.value)
    assert "write [Adapter], because the default is [Merged]" in str(error.value)
    (rule,) = [rule for rule, _ in CEL_RULES["spec"] if "method.promptTuning" in rule and "output.formats" in rule]
    assert rule.endswith("self.output.formats.all(one, one in ['Adapter'])")


def test_a_classifier_is_rejected() -> None:
    job = make_job(method={"promptTuning": {}}, output={"formats": ["Adapter"]})
    with pytest.raises(InvalidJobError, match=r"spec\.model\.task must be CausalLM with method\.promptTuning"):
        parse_job(job)
