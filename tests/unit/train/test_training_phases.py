"""Phases of gradual unfreezing with torch's optimizers, without DeepSpeed."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune_trainer.train.engine import make_optimizer
from finetune_trainer.train.phases import PHASE, Phases
from train_configs import train_config


def made(optimizer: str, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Phases]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    first = {name: 2 - int(name[0]) for name, _ in model.named_parameters()}
    training = train_config(training={"weightDecay": 0.5, "optimizer": {"name": optimizer}}).spec.training
    made_optimizer = make_optimizer(model, training, None, first)
    return model, made_optimizer, Phases(model, made_optimizer, first, steps=steps)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["AdamW", "RAdam"])
def test_until_its_phase_a_parameter_has_no_gradient_no_decay_and_no_state_of_the_optimizer(name: str) -> None:
    model, optimizer, phases = made(name, 2)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for done in range(6):
        assert phases.enter(done) == (done % 2 == 0)
        step(model, optimizer)
        for key, value in model.named_parameters():
            steps = max(0, done + 1 - 2 * (2 - int(key[0])))
            assert float(optimizer.state.get(value, {}).get("step", 0.0)) == steps
            assert torch.equal(value, before[key]) == (steps == 0)


def test_gradients_that_hold_zeros_are_not_used_and_are_kept_for_the_next_step() -> None:
    """With offloading, ZeRO has one gradient per group for the whole training."""
    _, optimizer, phases = made("AdamW", 2)
    phases.enter(0)
    (held,) = [group["params"] for group in optimizer.param_groups if group[PHASE] == 2 and group["weight_decay"]]
    before = held[0].detach().clone()
    held[0].grad = torch.zeros_like(held[0])
    zeros = held[0].grad
    optimizer.step()
    assert held[0].grad is zeros
    assert torch.equal(held[0], before)
    assert held[0] not in optimizer.state


def test_every_group_has_parameters_of_one_phase_and_the_rate_of_the_head_comes_first() -> None:
    model, optimizer, _ = made("AdamW", 2)
    groups: list[dict[str, Any]] = optimizer.param_groups
    assert [(group[PHASE], bool(group["weight_decay"])) for group in groups] == [
        (phase, decays) for phase in (0, 1, 2) for decays in (True, False)
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_log_has_the_phases_that_have_begun() -> None:
    _, _, phases = made("AdamW", 2)
    assert [entry["first_step"] for entry in phases.summary(last_step=10)] == [1, 3, 5]
    assert phases.summary(last_step=2) == [{"first_step": 1, "trained_parameters": 10}]
    assert phases.summary(last_step=3)[1:] == [{"first_step": 3, "trained_parameters": 30}]
    phases.enter(2)
    assert phases.description == "phase 2 of 3, from step 3: 30 parameters are trained"
