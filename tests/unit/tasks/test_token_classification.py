"""Token classification against transformers and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import BertConfig, BertForTokenClassification

from finetune_api.v1alpha1 import Metric, Task
from finetune_trainer.data.collate import Collator
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.tasks.entities import EntityLabels

TASK = TASKS[Task.TOKEN_CLASSIFICATION]
LABELS = ("B", "I", "O", "X")


class Rows:
    """Rows of different lengths in which some tokens have no label; no token has the last label."""

    def __init__(self, count: int) -> None:
        draw = np.random.default_rng(3)
        sizes = draw.integers(2, 9, count)
        self.rows = [
            {"input_ids": draw.integers(5, 40, size), "labels": np.append(IGNORED, draw.integers(0, 3, size - 1))}
            for size in sizes
        ]
        self.lengths = sizes.astype(np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def documents(self) -> Any:
        return np.arange(len(self.rows))

    def units(self) -> None:
        return None


@pytest.fixture(scope="module")
def model() -> BertForTokenClassification:
    torch.manual_seed(0)
    return BertForTokenClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=len(LABELS),
        )
    ).eval()


def test_the_loss_is_transformers_own(model: BertForTokenClassification) -> None:
    batch = Collator(0, Task.TOKEN_CLASSIFICATION)(Rows(5).rows)
    output = model(**batch)
    mean = TASK.loss(output.logits, batch) / TASK.targets(batch)
    torch.testing.assert_close(mean, output.loss)


def test_figures_are_those_of_every_row_alone(model: BertForTokenClassification) -> None:
    split = Rows(150)
    losses, predicted, expected = [], [], []
    with torch.inference_mode():
        for row in split.rows:
            logits = model(input_ids=torch.tensor(row["input_ids"])[None]).logits[0]
            labels = torch.tensor(row["labels"])
            losses.append(torch.nn.functional.cross_entropy(logits, labels))
            predicted += logits.argmax(-1)[labels != IGNORED].tolist()
            expected += labels[labels != IGNORED].tolist()
    collate = Collator(0, Task.TOKEN_CLASSIFICATION)
    found = TASK.measure(model, split, collate, LABELS, lambda _: None)
    assert found.metrics[Metric.ACCURACY] == pytest.approx(accuracy_score(expected, predicted))
    assert found.metrics[Metric.MACRO_F1] == pytest.approx(f1_score(expected, predicted, average="macro"))
    entities = EntityLabels.of(LABELS).entities
    rows = np.repeat(np.arange(150), [int((row["labels"] != IGNORED).sum()) for row in split.rows])
    spans = [{*map(tuple, entities(np.array(ids), rows).T.tolist())} for ids in (expected, predicted)]
    f1 = 2 * len(spans[0] & spans[1]) / (len(spans[0]) + len(spans[1]))
    assert 0 < f1 < 1
    assert found.metrics[Metric.ENTITY_F1] == pytest.approx(f1)
    for mean in found.means:
        for metric, of_mean in mean.metrics.items():
            assert of_mean(mean.sums.sum() / mean.weights.sum()) == pytest.approx(found.metrics[metric])
    assert (found.examples, found.tokens) == (150, len(expected))
    np.testing.assert_allclose(found.scores, losses, rtol=1e-5)
    np.testing.assert_allclose(TASK.row_losses(model, split, collate, lambda _: None), losses, rtol=1e-5)

    ranks = [TASK.validation_scores(len(split), LABELS) for _ in range(2)]
    for begin in range(0, len(split), 10):
        batch = collate(split.rows[begin : begin + 10])
        with torch.inference_mode():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
        ranks[begin // 10 % 2].add(np.arange(begin, begin + 10), logits, batch)
    for mine, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        mine.add_(other)
    assert ranks[0].metrics(found.metrics[Metric.LOSS]) == pytest.approx(found.metrics)
