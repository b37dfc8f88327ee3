"""The loss is the one of the models themselves, summed."""

import pytest
import torch
from torch.nn import functional
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother

from finetune_api.v1alpha1 import Task
from finetune_trainer.tasks import IGNORED, TASKS, TrainingTask

LANGUAGE_MODEL, CLASSIFIER = TASKS[Task.CAUSAL_LM], TASKS[Task.SEQUENCE_CLASSIFICATION]

ROWS, TOKENS, VOCABULARY = 3, 7, 11


def make_lm_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((ROWS, TOKENS, VOCABULARY), generator=generator)
    labels = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=generator)
    labels[0, :4] = IGNORED
    labels[2, 5:] = IGNORED
    return logits, labels


def summed(task: TrainingTask, logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    return task.loss(logits, {"labels": labels}, smoothing=smoothing)


def targets(labels: torch.Tensor) -> int:
    return LANGUAGE_MODEL.targets({"labels": labels})


def test_a_language_models_loss_is_transformers_own() -> None:
    logits, labels = make_lm_batch()
    theirs = ForCausalLMLoss(logits, labels, vocab_size=VOCABULARY, num_items_in_batch=torch.tensor(1.0))
    torch.testing.assert_close(summed(LANGUAGE_MODEL, logits, labels), theirs)


def test_the_mean_per_target_is_transformers_own() -> None:
    logits, labels = make_lm_batch()
    mean = summed(LANGUAGE_MODEL, logits, labels) / targets(labels)
    torch.testing.assert_close(mean, ForCausalLMLoss(logits, labels, vocab_size=VOCABULARY))


def test_the_first_token_of_a_row_is_no_target() -> None:
    labels = torch.full((1, 4), IGNORED)
    labels[0, 0] = 5
    assert targets(labels) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_the_trainers(smoothing: float) -> None:
    logits, labels = make_lm_batch()
    theirs = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels, shift_labels=True)
    mean = summed(LANGUAGE_MODEL, logits, labels, smoothing=smoothing) / LANGUAGE_MODEL.targets({"labels": labels})
    torch.testing.assert_close(mean, theirs)


def test_a_classifiers_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(summed(CLASSIFIER, logits, labels) / 5, functional.cross_entropy(logits, labels))
