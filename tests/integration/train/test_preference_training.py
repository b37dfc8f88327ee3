"""DPO prefers the chosen answers of held-out pairs, with the same losses for any micro-batch and number of workers."""

import math

import pytest

from finetune_trainer.run_record import read_chosen_rate
from training_harness import PAIRS, STEPS_PER_EPOCH, TrainingHarness

BLOCKS = {"kind": PAIRS, "evaluation": {"everySteps": 5}}


def test_accuracy_rises_and_losses_do_not_depend_on_micro_batches_and_workers(harness: TrainingHarness) -> None:
    """The first loss is that of a model that equals its reference."""
    one = harness.config("preference-one", world=1, micro=8, zero=0, **BLOCKS)
    two = harness.config("preference-two", world=2, micro=1, zero=2, **BLOCKS)
    attempts = [harness.finish(config) for config in (one, two)]
    losses = harness.losses(one)
    assert harness.losses(two) == pytest.approx(losses, rel=1e-4)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < 0.8 * losses[0]
    log = harness.training_log(two)
    assert [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry][-1] == 1.0
    assert [entry["eval_margin"] for entry in log if "eval_margin" in entry][-1] > 0.1
    documents = [harness.store.get_json(config.layout.training_log) for config in (one, two)]
    assert documents[0]["tokens"] == documents[1]["tokens"]
    assert all(attempt.message.trained is not None for attempt in attempts)


@pytest.mark.parametrize("zero", [0, 2])
def test_a_killed_run_has_the_same_result_in_every_bit(harness: TrainingHarness, zero: int) -> None:
    blocks = {"kind": "pairs-dropout", "zero": zero, "method": {"lora": {"dropout": 0.1}}}
    _, last = harness.check_resume(f"preference-{zero}", kills=[2, STEPS_PER_EPOCH], **blocks)
    assert last.message.progress is not None
    assert STEPS_PER_EPOCH <= (last.message.progress.resumed_from_step or 0) < 2 * STEPS_PER_EPOCH


def test_a_range_test_finds_a_learning_rate(harness: TrainingHarness) -> None:
    config = harness.config("preference-rate", world=2, training={"learningRate": None, "maxSteps": 2}, kind=PAIRS)
    progress = harness.finish(config).message.progress
    assert progress is not None
    chosen = read_chosen_rate(harness.store, config)
    assert chosen is not None
    assert len(chosen.losses) > 5
    assert progress.chosen_learning_rate == chosen.learning_rate
