"""IA3: only the factors are trained, and the export is the trained model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_api.v1alpha1.methods.ia3 import Ia3
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.inspect import inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.tasks import TASKS
from train_configs import train_config

LABELS = ("animal", "food")
IA3 = METHODS["ia3"]
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(
    ("family", "task", "targets"),
    [
        ("llama-tied", Task.CAUSAL_LM, None),
        ("llama", Task.CAUSAL_LM, ("k_proj", "up_proj")),
        ("gpt2", Task.CAUSAL_LM, None),  # its matrices are stored transposed
        ("bert", Task.SEQUENCE_CLASSIFICATION, None),
        ("roberta", Task.SEQUENCE_CLASSIFICATION, None),  # its head has several layers
        ("distilbert", Task.SEQUENCE_CLASSIFICATION, ("k_lin", "v_lin", "lin1")),
    ],
)
def test_merged_model_and_adapter_are_the_trained_model(
    family: str, task: Task, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    base, labels = (
        tiny_models.save_tiny(family, tmp_path / "base"),
        LABELS if task is Task.SEQUENCE_CLASSIFICATION else (),
    )
    block = {} if targets is None else {"targetModules": list(targets)}
    config = train_config(
        model={"uri": f"file://{base}"}, method={"ia3": block}, prepared={"task": task, "labels": labels}
    )
    assert config.prepared is not None

    def fresh(seed: int) -> Any:
        return load_model(base, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=seed)

    model: Any = IA3.apply(fresh(3), config.spec.method.block, TASKS[task], seed=1)
    torch.testing.assert_close(logits(model), logits(fresh(3)))  # the factors are initialized with ones
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    assert all(".ia3_l." in name or ".modules_to_save." in name for name in weights)
    factors = sum(value.numel() for name, value in weights.items() if ".ia3_l." in name)
    assert 0 < factors <= IA3.parameters(inspect_model(base, "base"), config.spec.method.block).trained
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.2 * torch.randn_like(value))
    for artifact in (ArtifactFormat.MERGED, ArtifactFormat.ADAPTER):
        write_folder(artifact, model, weights, tmp_path / artifact, config=config, base=base)
    trained = logits(model)
    # Not the head of training: the adapter must contain it.
    again = reload_adapter(fresh(4), tmp_path / "Adapter", "adapter", config.prepared, IA3)
    torch.testing.assert_close(logits(again), trained)
    torch.testing.assert_close(logits(reload_model(tmp_path / "Merged", "model", config.prepared)), trained)
    assert not torch.allclose(logits(fresh(3)), trained, atol=1e-3), "an adapter that changes nothing would pass"


@pytest.mark.parametrize("targets", [None, ("query",)])
def test_an_architecture_that_peft_does_not_support_needs_valid_targets(
    targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    base = tiny_models.save_tiny("distilbert", tmp_path / "base")
    with pytest.raises(BadConfigError, match=re.escape("spec.method.ia3 cannot be applied to DistilBert")) as error:
        IA3.check(base, Ia3(target_modules=targets), TASKS[Task.SEQUENCE_CLASSIFICATION])
    assert "set spec.method.ia3.targetModules" in error.value.advice
    assert "k_lin, lin1, lin2" in error.value.advice
