"""A training that overfits is reported or stopped, also across a restart, and the best state is exported."""

from typing import Any

from training_harness import TrainingHarness


def blocks(action: str, **options: Any) -> dict[str, Any]:
    """Sentences that were learned long ago are learned further, with a validation after every second step."""
    rule = {"action": action, "maxGap": 0.0, "minRise": 0.0, "patience": 3, **options}
    return {
        "kind": "llama",
        "training": {"epochs": 40, "learningRate": 2e-2, "overfitting": rule},
        "evaluation": {"everySteps": 5},
    }


def test_stop_ends_the_training_and_exports_the_best_state_and_warn_trains_to_the_end(harness: TrainingHarness) -> None:
    through = harness.config("overfitting-through", **blocks("Stop"))
    whole = harness.run(through)
    assert whole.exit_codes == [0, 0], whole.output
    trained, losses = whole.message.trained, harness.evaluation_losses(through)
    assert trained is not None
    assert trained.stopped_early
    assert whole.message.progress is not None
    assert trained.final_step < whole.message.progress.total_steps
    assert trained.best_step == min(losses, key=lambda step: losses[step])
    (warning,) = [text for text in whole.message.progress.warnings if "the training overfits" in text]
    assert f"from step {trained.best_step} to step {trained.final_step}" in warning

    evidence = whole.message.progress.overfitting
    assert evidence is not None
    assert (evidence.found, evidence.lowest_step, evidence.step) == (True, trained.best_step, trained.final_step)
    assert evidence.validation_loss == losses[trained.final_step]
    assert evidence.lowest_validation_loss == losses[trained.best_step]

    # The stop is between the best state and the end, so part of the patience is counted before the restart.
    step = trained.final_step - 3
    assert step > trained.best_step
    config = harness.config("overfitting", **blocks("Stop"))
    assert harness.run(config, TEST_END="stop", TEST_END_STEP=str(step)).exit_codes == [75, 75]
    again = harness.config("overfitting", attempt=2, **blocks("Stop"))
    last = harness.run(again)
    assert last.exit_codes == [0, 0], last.output
    assert harness.training_log(again) == harness.training_log(through)
    assert last.message.progress is not None
    assert last.message.progress.overfitting == evidence
    assert last.message.trained is not None
    assert (last.message.trained.best_step, last.message.trained.final_step) == (trained.best_step, trained.final_step)
    assert last.message.trained.digest == trained.digest
    assert warning in harness.store.get_json(again.layout.training_log)["warnings"]

    warned = harness.config("overfitting-warned", **blocks("Warn"))
    attempt = harness.run(warned)
    assert attempt.exit_codes == [0, 0], attempt.output
    ended, progress = attempt.message.trained, attempt.message.progress
    assert ended is not None
    assert progress is not None
    assert (ended.stopped_early, ended.final_step, ended.best_step) == (False, progress.total_steps, None)
    assert harness.store.get_json(warned.layout.training_log)["warnings"] == [warning]
    assert harness.exported_loss(through) < harness.exported_loss(warned)


def test_a_training_that_still_learns_is_not_reported(harness: TrainingHarness) -> None:
    learning = blocks("Stop", maxGap=0.2, minRise=0.05)
    learning["training"] |= {"epochs": 2, "learningRate": 1e-3}
    config = harness.config("overfitting-healthy", **learning)
    attempt = harness.run(config)
    assert attempt.exit_codes == [0, 0], attempt.output
    assert attempt.message.trained is not None
    assert not attempt.message.trained.stopped_early
    assert harness.store.get_json(config.layout.training_log)["warnings"] == []
