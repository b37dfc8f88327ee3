"""A training without a learning rate: the range test chooses one, once per run, and changes nothing else."""

from typing import Any

import pytest

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.errors import FencedError
from finetune_trainer.learning_rate import ChosenRate
from finetune_trainer.run_record import read_chosen_rate
from method_cases import case_blocks
from training_harness import TrainingHarness

SAVES = {"checkpoint": {"everySteps": 1}}
MEMORY_TARGET = "train_ranks:train_rank_without_discarded_models"


def without_rate(harness: TrainingHarness, name: str, **blocks: Any) -> TrainerConfig:
    return harness.config(name, **blocks | {"training": {**blocks.get("training", {}), "learningRate": None}})


@pytest.mark.parametrize(
    ("zero", "method", "kind"), [(2, "lora-plus", "bert-dropout"), (3, "full", "llama-dropout"), (1, "full", "llama")]
)
def test_a_training_after_the_test_is_bitwise_equal_to_one_with_the_rate_written_out(
    harness: TrainingHarness, zero: int, method: str, kind: str
) -> None:
    """The first attempt frees the memory of the test and is killed. The next one does not test again."""
    blocks = {"kind": kind, "zero": zero, **case_blocks(method)}
    name = f"tested-{zero}-{method}-{kind}"
    first = without_rate(harness, name, **blocks, **SAVES)
    harness.interrupt(first, 3, how="kill", target=MEMORY_TARGET)
    chosen = read_chosen_rate(harness.store, first)
    assert chosen is not None
    assert not chosen.default_reason
    assert len(chosen.losses) > 10

    config = without_rate(harness, name, attempt=2, **blocks, **SAVES)
    resumed = harness.finish(config)
    progress = resumed.message.progress
    assert progress is not None
    assert progress.resumed_from_step
    assert "rate test" not in progress.phase_seconds
    assert progress.chosen_learning_rate == chosen.learning_rate

    training = {**blocks.pop("training", {}), "learningRate": chosen.learning_rate}
    written = harness.config(f"written-{name}", **blocks, training=training)
    harness.check_same_result(config, resumed, written, harness.finish(written))


def test_a_stop_ends_the_test_and_the_next_attempt_tests_again(harness: TrainingHarness) -> None:
    """The second attempt has too few rows for a test: it uses the default of the method and says so."""
    first = without_rate(harness, "stopped-in-test", kind="bert")
    stopped = harness.run(first, TEST_END="stop-in-rate-test", TEST_END_RANKS="1")
    assert stopped.exit_codes == [75, 75], stopped.output
    assert "during the test of learning rates" in stopped.message.error
    assert read_chosen_rate(harness.store, first) is None

    config = without_rate(harness, "stopped-in-test", kind="bert", attempt=2, batch=32)
    progress = harness.finish(config).message.progress
    assert progress is not None
    assert progress.chosen_learning_rate == max(
        entry["learning_rate"] for entry in harness.training_log(config) if "learning_rate" in entry
    )
    note = "the learning rate is 2e-05, the default of the method, because the training split has 2 batches"
    assert any(warning.startswith(note) for warning in progress.warnings), progress.warnings


def test_an_object_of_a_run_is_created_once_and_not_by_a_fenced_attempt(harness: TrainingHarness) -> None:
    config = harness.config("created-once", kind="bert")
    first, second = (RunStorage.of(harness.store, config.run_uri, attempt=number) for number in (1, 2))
    uri = config.layout.learning_rate
    contents = [ChosenRate(learning_rate=rate).model_dump_json().encode() for rate in (1e-3, 2e-3)]
    first.claims.claim(world_size=1)
    assert first.create(uri, contents[0]) == contents[0]
    second.claims.claim(world_size=1)
    assert second.create(uri, contents[1]) == contents[0]
    second.claims.has_conditions = False
    assert second.create(uri, contents[1]) == contents[0]
    harness.store.delete(uri)
    with pytest.raises(FencedError):
        first.create(uri, contents[0])
    assert second.create(uri, contents[1]) == contents[1]


def test_the_chosen_rate_is_about_as_good_as_the_best_of_a_grid(harness: TrainingHarness) -> None:
    def validation_loss(rate: float | None) -> float:
        training = {"epochs": 8, "learningRate": rate}
        config = harness.config(f"grid-{rate}".lower(), kind="bert", world=1, training=training)
        harness.finish(config)
        return harness.exported_loss(config)

    grid = {rate: validation_loss(rate) for rate in (2e-5, 5e-4, 1e-1)}
    chosen = validation_loss(None)
    assert chosen < min(grid.values()) + 0.1, grid
    assert chosen < grid[2e-5] / 2, "the default rate of the method is too low for this model"
