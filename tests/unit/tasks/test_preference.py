"""The loss of DPO is that of the formula, and models are measured by their margins."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.v1alpha1 import Dpo, Metric, Training
from finetune_trainer.data.collate import Collator
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.tasks.preference import DirectPreference, Preference, differences

TASK = TASKS["Preference"]
VOCABULARY = 16
LENGTHS = [(4, 6), (7, 3), (5, 5)]


class Rows:
    """Pairs of random tokens, of which the first two are the prompt."""

    def __init__(self) -> None:
        draw = np.random.default_rng(3)
        self.rows: list[dict[str, Any]] = []
        for first, second in LENGTHS:
            ids = draw.integers(1, VOCABULARY, first + second)
            labels = ids.copy()
            labels[[0, 1, first, first + 1]] = IGNORED
            self.rows.append({"input_ids": ids, "labels": labels, "first_length": first})
        self.lengths = np.array([len(row["input_ids"]) for row in self.rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def made_model(*, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=dropout,
    )
    model = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=dropout)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def answer_log_probabilities(model: Any, row: dict[str, Any]) -> list[list[float]]:
    """Log-probability of each token of both answers, computed one text at a time in 64 bit."""
    found = []
    for part in (slice(row["first_length"]), slice(row["first_length"], None)):
        ids = row["input_ids"][part]
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].double().numpy()
        found.append(
            [
                float(logits[place - 1][ids[place]] - math.log(np.exp(logits[place - 1]).sum()))
                for place in range(2, len(ids))
            ]
        )
    return found


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_loss_is_that_of_the_formula_in_any_micro_batches(beta: float) -> None:
    model, rows = made_model(), Rows()
    model.eval()
    ratios = []
    for row in rows.rows:
        chosen, rejected = map(sum, answer_log_probabilities(model, row))
        with model.disable_adapter():
            reference = list(map(sum, answer_log_probabilities(model, row)))
        ratios.append((chosen - reference[0]) - (rejected - reference[1]))
    expected = sum(math.log1p(math.exp(-beta * ratio)) for ratio in ratios)
    assert max(map(abs, ratios)) > 0.01, "the adapter changes the model"

    task = TASK.training_task(Training(dpo=Dpo(beta=beta)))
    padded = [*rows.rows, task.padding_row(rows[0])]

    def loss(part: list[dict[str, Any]]) -> float:
        batch = Collator(0, task)(part)
        batch |= task.reference(model, batch)
        model.eval()
        return float(task.loss(model(**task.inputs(batch)).logits, batch).detach())

    assert loss(padded) == pytest.approx(expected, rel=1e-4)
    assert sum(loss([row]) for row in padded) == pytest.approx(expected, rel=1e-4)
    assert task.targets(Collator(0, task)(padded)) == len(rows)


def test_without_settings_beta_is_a_tenth() -> None:
    task = TASK.training_task(Training())
    assert isinstance(task, DirectPreference)
    logits = torch.zeros(2, 4, VOCABULARY)
    batch = {"labels": torch.tensor([[IGNORED, 1, 1, 1], [IGNORED, 1, IGNORED, IGNORED]]), "reference": torch.zeros(1)}
    expected = math.log1p(math.exp(0.1 * 2 * math.log(VOCABULARY)))
    assert float(task.loss(logits, batch)) == pytest.approx(expected)


def test_the_reference_is_the_base_model_without_dropout_and_draws_no_random_number() -> None:
    model, rows = made_model(dropout=0.5), Rows()
    task = DirectPreference(Dpo())
    batch = Collator(0, task)(rows.rows)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = model.get_base_model()
    model.train()
    before = torch.get_rng_state()
    found = task.reference(model, batch)["reference"]
    assert torch.equal(torch.get_rng_state(), before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(differences(base(**task.inputs(batch)).logits, batch), found)
    assert not torch.equal(differences(model(**task.inputs(batch)).logits, batch), found)


def test_models_are_measured_by_the_difference_of_the_mean_log_probabilities() -> None:
    model, rows = made_model(), Rows()
    model.eval()
    means = [[float(np.mean(each)) for each in answer_log_probabilities(model, row)] for row in rows.rows]
    margins = [chosen - rejected for chosen, rejected in means]
    collate = Collator(0, Preference())
    found = TASK.measure(model, rows, collate, (), lambda _: None)  # type: ignore[arg-type]
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    assert found.metrics == pytest.approx(
        {
            Metric.LOSS: np.mean(losses),
            Metric.ACCURACY: np.mean([margin > 0 for margin in margins]),
            Metric.MARGIN: np.mean(margins),
        },
        rel=1e-4,
    )
    assert TASK.row_losses(model, rows, collate, lambda _: None) == pytest.approx(losses, rel=1e-4)
    scores = TASK.validation_scores(len(rows), ())
    batch = collate(rows.rows)
    with torch.no_grad():
        logits = model(**TASK.inputs(batch)).logits
    scores.add(np.arange(len(rows)), logits, batch)
    loss = float(TASK.loss(logits, batch)) / TASK.targets(batch)
    assert scores.metrics(loss) == pytest.approx(found.metrics, rel=1e-4)
