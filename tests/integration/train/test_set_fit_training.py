"""SetFit trains on the same pairs with any batches and workers, and its classifier is measured during the training."""

import pytest

from finetune_trainer.run_record import read_chosen_rate
from training_harness import TrainingHarness

SET_FIT = {"kind": "bert", "method": {"setFit": {}}, "evaluation": {"everySteps": 5}}


def test_losses_do_not_depend_on_micro_batches_and_workers(harness: TrainingHarness) -> None:
    one, two = (
        harness.config("pairs-one", world=1, micro=8, **SET_FIT),
        harness.config("pairs-two", world=2, micro=1, **SET_FIT),
    )
    attempts = [harness.finish(config) for config in (one, two)]
    losses, validation = harness.losses(one), harness.evaluation_losses(one)
    assert harness.losses(two) == pytest.approx(losses, rel=1e-3)
    assert harness.evaluation_losses(two) == pytest.approx(validation, rel=1e-2)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert validation[10] < validation[5]
    documents = [harness.store.get_json(config.layout.training_log) for config in (one, two)]
    assert documents[0]["tokens"] == documents[1]["tokens"]
    # The validation loss is another function: it says nothing about a divergence.
    assert [document["warnings"] for document in documents] == [[], []]
    accuracy = [entry["eval_accuracy"] for entry in harness.training_log(one) if "eval_accuracy" in entry]
    assert accuracy[-1] == 1.0
    assert all(attempt.message.trained is not None for attempt in attempts)


def test_without_a_learning_rate_the_default_of_the_method_is_used_without_a_test(harness: TrainingHarness) -> None:
    """The loss of pairs does not say which rate gives the best classifier."""
    config = harness.config("pairs-rate", world=1, training={"learningRate": None, "maxSteps": 5}, **SET_FIT)
    progress = harness.finish(config).message.progress
    assert progress is not None
    assert progress.chosen_learning_rate == 2e-5
    chosen = read_chosen_rate(harness.store, config)
    assert chosen is not None
    assert chosen.losses == ()
    note = (
        "the learning rate is 2e-05, the default of the method, because a range test would use the loss of pairs of "
        "texts, which does not say which rate gives the best classifier; set spec.training.learningRate to use another"
    )
    assert any(warning.startswith(note) for warning in progress.warnings), progress.warnings
