"""The train stage runs with a method and a task that are added by a test, and resumes with the same bits."""

import torch
from safetensors.torch import load

from training_harness import STEPS_PER_EPOCH, TrainingHarness

TARGET = "train_ranks:train_rank_with_extensions"


def test_an_added_method_and_an_added_task_are_trained_resumed_and_exported(harness: TrainingHarness) -> None:
    saves = {"checkpoint": {"everySteps": 1}}
    through = harness.config("added-through", kind="bert-dropout")
    whole = harness.run(through, target=TARGET)
    assert whole.exit_codes == [0, 0], whole.output
    killed = harness.run(
        harness.config("added-killed", kind="bert-dropout", **saves), target=TARGET, TEST_END="kill", TEST_END_STEP="2"
    )
    assert killed.exit_codes == [-9, -9]
    config = harness.config("added-killed", kind="bert-dropout", attempt=2, **saves)
    resumed = harness.run(config, target=TARGET)
    assert resumed.exit_codes == [0, 0], resumed.output

    assert harness.training_log(config) == harness.training_log(through)
    losses = harness.losses(config)
    assert len(losses) == 2 * STEPS_PER_EPOCH
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {name for entry in harness.training_log(config) for name in entry if name.startswith("eval")} == {
        "eval_loss"
    }
    last = list(harness.evaluation_losses(config).values())[-1]
    assert abs(harness.exported_loss(config) - last) < 1e-4
    exported = load(harness.store.get(f"{config.model_uri}/model.safetensors"))
    base = load((harness.models / "bert-dropout/model.safetensors").read_bytes())
    frozen = {name.removeprefix("bert."): value for name, value in exported.items() if name.startswith("bert.")}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in frozen.items())
