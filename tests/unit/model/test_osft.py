"""Orthogonal subspace fine-tuning: the largest singular values of a matrix and their vectors stay as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from finetune_api.v1alpha1 import Dtype, Task
from finetune_api.v1alpha1.methods.osft import Osft
from finetune_trainer.errors import BadConfigError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks import TASKS

METHOD: Any = METHODS["osft"]
TASK = TASKS[Task.CAUSAL_LM]
IDS = torch.tensor([[5, 40, 41, 42, 43, 2], [5, 60, 61, 62, 63, 2]])


def test_a_step_changes_matrices_orthogonally_to_their_largest_singular_vectors(tmp_path: Path) -> None:
    folder, share = tiny_models.save_tiny("llama", tmp_path), 0.75
    base = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1)
    before = {name: value.clone() for name, value in base.named_parameters() if "proj" in name}
    model = METHOD.apply(base, Osft(kept_share=share), TASK, seed=1)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    merged, _ = METHOD.merge(model)
    after = dict(merged.named_parameters())
    assert len(before) == 14
    for name, matrix in before.items():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = int(share * len(values))
        change = after[name] - matrix
        assert change.abs().max() > 1e-6, name
        assert (left[:, :kept].T @ change @ right[:kept].T).abs().max() < 1e-5, name
        # Their directions keep their singular values, so that what they do is not changed.
        torch.testing.assert_close(left[:, :kept].T @ after[name] @ right[:kept].T, torch.diag(values[:kept]))


@pytest.mark.parametrize(
    ("family", "block", "message"),
    [
        ("gpt2", Osft(), "it has no linear layers "),
        ("llama", Osft(target_modules=("query",)), "it has no linear layers with the names query"),
    ],
)
def test_a_model_without_such_layers_is_refused_before_the_training(
    family: str, block: Osft, message: str, tmp_path: Path
) -> None:
    folder = tiny_models.save_tiny(family, tmp_path)
    with pytest.raises(BadConfigError, match=f"spec.method.osft cannot be applied to .*{message}"):
        METHOD.check(folder, block, TASK)
