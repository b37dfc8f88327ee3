"""SetFit: an ordinary classifier averages the tokens of a text, and its last layer is a logistic regression."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import tiny_models
from finetune_api.v1alpha1 import Dtype, Task
from finetune_api.v1alpha1.methods.set_fit import SetFit
from finetune_trainer.errors import BadConfigError, DivergedError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.set_fit import check_finite, fitted
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks import TASKS

METHOD: Any = METHODS["setFit"]
TASK = TASKS[Task.SEQUENCE_CLASSIFICATION]
LAST = {"bert": "classifier", "roberta": "classifier.out_proj", "xlm-roberta": "classifier.out_proj"}


def applied(family: str, folder: Path, seed: int = 1) -> Any:
    labels = ("a", "b", "c")
    base = load_model(
        tiny_models.save_tiny(family, folder),
        task=Task.SEQUENCE_CLASSIFICATION,
        labels=labels,
        dtype=Dtype.FLOAT32,
        seed=seed,
    )
    return METHOD.apply(base, SetFit(), TASK, seed=seed)


@pytest.mark.parametrize("family", LAST)
def test_the_embedding_is_the_normalized_mean_of_the_tokens(family: str, tmp_path: Path) -> None:
    model = applied(family, tmp_path).eval()
    ids = torch.tensor([[1, 40, 41, 42, 43, 2], [1, 60, 61, 2, 0, 0]])
    mask = (ids != 0).long()
    body = model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    tokens = body.hidden_states[-2]  # before the layer that is added
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.tanh(0.25 * torch.nn.functional.layer_norm(mean, mean.shape[-1:]))
    seen: list[torch.Tensor] = []
    with model.get_submodule(LAST[family]).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (2, 3)
    assert (seen[0] - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("family", LAST)
def test_in_training_only_the_encoder_has_gradients_and_the_model_returns_embeddings(
    family: str, tmp_path: Path
) -> None:
    model = applied(family, tmp_path).train()
    width = model.config.hidden_size
    found = model(input_ids=torch.tensor([[1, 40, 2], [1, 60, 2]])).logits
    assert found.shape == (2, width)
    (found @ torch.arange(float(width))).sum().backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {name for name, value in model.named_parameters() if value.grad is not None}
    added = len(model.base_model.encoder.layer) - 1
    assert {f"layer.{added}.", "pooler.", "classifier."}.isdisjoint(
        part for part in (f"layer.{added}.", "pooler.", "classifier.") for name in trained if part in name
    )
    assert any(f"layer.{added - 1}." in name for name in trained)
    assert any("word_embeddings" in name for name in trained)


@pytest.mark.parametrize("family", LAST)
def test_a_saved_model_computes_the_same(family: str, tmp_path: Path) -> None:
    import transformers

    model, ids = applied(family, tmp_path / "base").eval(), torch.tensor([[1, 40, 41, 42, 43, 2]])
    merged, weights = METHOD.merged(model, model.state_dict(), SetFit(), TASK, None)
    merged.save_pretrained(tmp_path / "saved", state_dict=weights)
    loaded, found = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(found.values())
    assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("present", [(0, 1), (1, 3), (0, 1, 2), (0, 2, 3)])
def test_the_classifier_has_the_probabilities_of_scikit_learn(present: tuple[int, ...]) -> None:
    """Labels without a text have none."""
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.repeat(present, 8))
    embeddings = draw.normal(size=(len(labels), 5)) + labels[:, None]
    weights = fitted(embeddings, labels, 4)
    logits = torch.from_numpy(embeddings @ weights[:, :-1].T + weights[:, -1])
    expected = np.zeros((len(labels), 4))
    expected[:, present] = LogisticRegression(max_iter=1000).fit(embeddings, labels).predict_proba(embeddings)
    assert logits.softmax(-1).numpy() == pytest.approx(expected, abs=1e-9)


def test_embeddings_that_are_not_finite_end_the_training_as_diverged() -> None:
    embeddings = np.ones((5, 3))
    embeddings[[1, 4], 2] = math.nan, math.inf
    with pytest.raises(DivergedError, match="the embeddings of 2 of 5 training texts are not finite") as error:
        check_finite(embeddings)
    assert "spec.training.learningRate" in error.value.advice


@pytest.mark.parametrize("family", ["distilbert", "albert", "llama"])
def test_a_family_that_cannot_average_tokens_is_refused_before_the_training(family: str, tmp_path: Path) -> None:
    folder = tiny_models.save_tiny(family, tmp_path)
    with pytest.raises(BadConfigError, match=f"spec.method.setFit must have an encoder of the family .*, not {family}"):
        METHOD.check(folder, SetFit(), TASK)
