"""The small state of a checkpoint is read again, also that of earlier versions."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from finetune_api.v1alpha1 import Overfitting
from finetune_trainer.train.loss_watch import LossWatch
from finetune_trainer.train.overfitting import OverfittingWatch
from finetune_trainer.train.state import RunState, read_small_state, small_state
from finetune_trainer.train.stopping import BestState

LOG = [{"loss": 0.5, "learning_rate": 1e-3, "epoch": 0.5, "step": 3}]
RULE = Overfitting()
RUN = RunState(
    step=4,
    tokens=77,
    log=LOG,
    last_logged_step=3,
    loss_since_log=(0.25, 0.75),
    best=BestState(value=0.4, step=2, evaluations_since=1),
    loss_watch=LossWatch(start=0.9, high=1),
    evaluation_due=True,
)
WATCHED = dataclasses.replace(
    RUN,
    overfitting=OverfittingWatch(0.4, 2, 0.3, 1, "it overfits", OverfittingWatch().after(0.5, 0.2, 4, RULE).evidence),
)
OLDER = dataclasses.replace(RUN, overfitting=OverfittingWatch(0.4, 2, 0.3, 1, "it overfits"))
BEFORE_THE_LOOP = {
    "trainer": {"epoch": 0.66, "global_step": 4, "max_steps": 9, "log_history": LOG, "is_world_process_zero": True},
    "scheduler": {"base_lrs": [1e-3], "last_epoch": 4},
    "losses": {"since_log": [0.25, 0.75], "logged": 1.5, "last_logged_step": 3},
    "run": {
        "tokens": 77,
        "best": {"value": 0.4, "step": 2, "evaluations_since": 1},
        "loss_watch": {"start": 0.9, "high": 1},
        "stopped_early": False,
        "finished": False,
        "evaluation_due": True,
    },
}
"""Written while transformers' Trainer ran the loop."""


def schedule() -> LambdaLR:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


@pytest.mark.parametrize("state", [RUN, WATCHED])
def test_a_state_is_the_same_after_json(state: RunState) -> None:
    stored = json.loads(json.dumps(small_state(state, schedule())))
    assert ("overfitting" in stored["run"]) is (state is WATCHED)
    run, position = read_small_state(stored)
    assert run == state
    assert position["last_epoch"] == 0


def test_a_state_without_the_losses_of_overfitting_is_read() -> None:
    stored = json.loads(json.dumps(small_state(OLDER, schedule())))
    del stored["run"]["overfitting"]["evidence"]
    assert read_small_state(stored)[0] == OLDER


def test_a_state_of_an_earlier_version_is_read() -> None:
    run, position = read_small_state(json.loads(json.dumps(BEFORE_THE_LOOP)))
    assert run == RUN
    assert position["last_epoch"] == 4


def test_a_state_of_an_earlier_version_without_loss_watch_is_read() -> None:
    old: dict[str, Any] = json.loads(json.dumps(BEFORE_THE_LOOP))
    del old["run"]["loss_watch"]
    assert read_small_state(old)[0] == dataclasses.replace(RUN, loss_watch=LossWatch())


@pytest.mark.parametrize(("world", "losses"), [(2, [0.25, 0.75]), (1, [0.5]), (4, [0.5] * 4)])
def test_the_loss_since_the_last_log_line_has_the_same_mean_in_every_world(world: int, losses: list[float]) -> None:
    assert [RUN.loss_of_rank(rank, world) for rank in range(world)] == losses
