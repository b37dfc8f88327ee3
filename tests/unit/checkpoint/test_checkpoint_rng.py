"""Serialization of random number generators."""

import json
import random

import numpy as np
import torch

from finetune_trainer.checkpoint.engine import rng


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.standard_normal()),
        float(np.random.random()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_the_streams_continue_after_a_restore() -> None:
    draw()  # leaves the second value of a pair of gaussians
    state = json.loads(json.dumps(rng.capture()))
    expected = [draw(), draw()]
    rng.reseed(seed=1, step=2, rank=3)
    rng.restore(state)
    assert [draw(), draw()] == expected


def test_new_streams_are_repeatable_and_differ_by_seed_step_and_rank() -> None:
    def first(seed: int, step: int, rank: int) -> tuple[float, ...]:
        rng.reseed(seed=seed, step=step, rank=rank)
        return tuple(draw())

    places = [(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0)]
    assert len({first(*place) for place in places}) == len(places)
    assert first(1, 1, 0) == first(1, 1, 0)
