"""Variants of LoRA and layer-norm tuning: merged model and adapter are the trained model, and counts are right."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.initial_weights import begin_with
from finetune_trainer.model.inspect import inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.tasks import TASKS
from train_configs import train_config

IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])
LABELS = ("animal", "food")
BLOCKS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora": {}},
    "RsLoRA": {"lora": {"variant": "RsLoRA"}},
    "DoRA": {"lora": {"variant": "DoRA"}},
    "Gaussian": {"lora": {"init": "Gaussian"}},
    "PiSSA": {"lora": {"init": "PiSSA", "alpha": 8}},
    "norms": {"layerNormTuning": {}},
    "subspace": {"osft": {"keptShare": 0.75}},
}
FAMILIES = {
    "llama-tied": Task.CAUSAL_LM,
    "gpt2": Task.CAUSAL_LM,  # its matrices are stored transposed
    "qwen2": Task.CAUSAL_LM,
    "bert": Task.SEQUENCE_CLASSIFICATION,
    "roberta": Task.SEQUENCE_CLASSIFICATION,  # its head has several layers
    "distilbert": Task.SEQUENCE_CLASSIFICATION,
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


UNSUPPORTED = ("gpt2", "subspace")


@pytest.mark.parametrize(("family", "block"), [case for case in product(FAMILIES, BLOCKS) if case != UNSUPPORTED])
def test_merged_model_and_adapter_are_the_trained_model(family: str, block: str, tmp_path: Path) -> None:
    base, task = tiny_models.save_tiny(family, tmp_path / "base"), FAMILIES[family]
    labels = LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()
    config = train_config(
        model={"uri": f"file://{base}"}, method=BLOCKS[block], prepared={"task": task, "labels": labels}
    )
    spec, prepared = config.spec.method, config.prepared
    method = METHODS[spec.name]
    assert prepared is not None

    def fresh(seed: int) -> Any:
        return load_model(base, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=seed)

    method.check(base, spec.block, TASKS[task])
    model: Any = method.apply(fresh(3), spec.block, TASKS[task], seed=1)
    if method.has_initial_weights(spec.block):
        begin_with(model, method, spec.block, method.initial_weights(model, spec.block, seed=1))
    torch.testing.assert_close(logits(model), logits(fresh(3)))  # it begins as the base model
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    counted = sum(value.numel() for name, value in weights.items() if ".modules_to_save." not in name)
    expected = method.parameters(inspect_model(base, "base"), spec.block)
    # OSFT keeps a copy of the initial values.
    assert (expected.added == expected.trained) == (block != "subspace")
    # The estimate has both axes of a matrix for the lengths of its rows, and a pooler that this classifier lacks.
    is_exact = block != "DoRA" and family != "roberta"
    assert (1.0 if is_exact else 0.9) * expected.trained <= counted <= expected.trained
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.1 * torch.randn_like(value))
    for artifact in (ArtifactFormat.MERGED, ArtifactFormat.ADAPTER):
        write_folder(artifact, model, weights, tmp_path / artifact, config=config, base=base)
    trained = logits(model)
    # Another head than that of training: an adapter has to bring it.
    again = reload_adapter(fresh(4), tmp_path / "Adapter", "adapter", prepared, method)
    torch.testing.assert_close(logits(again), trained)
    torch.testing.assert_close(logits(reload_model(tmp_path / "Merged", "model", prepared)), trained)
    assert not torch.allclose(logits(fresh(3)), trained, atol=1e-3), "an adapter that changes nothing would pass"
