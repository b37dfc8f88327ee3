"""The train stage runs with a method and a task that it has never heard of, and resumes them to the last bit."""

import torch
from safetensors.torch import load

from train_lab import STEPS_PER_EPOCH, Lab

TARGET = "train_ranks:train_rank_with_extensions"


def test_an_added_method_and_an_added_task_are_trained_resumed_and_exported(lab: Lab) -> None:
    saves = {"checkpoint": {"everySteps": 1}}
    through = lab.config("added-through", kind="bert-dropout")
    whole = lab.run(through, target=TARGET)
    assert whole.exit_codes == [0, 0], whole.output
    killed = lab.run(
        lab.config("added-killed", kind="bert-dropout", **saves), target=TARGET, TEST_END="kill", TEST_END_STEP="2"
    )
    assert killed.exit_codes == [-9, -9]
    config = lab.config("added-killed", kind="bert-dropout", attempt=2, **saves)
    resumed = lab.run(config, target=TARGET)
    assert resumed.exit_codes == [0, 0], resumed.output

    assert lab.training_log(config) == lab.training_log(through)
    losses = lab.losses(config)
    assert len(losses) == 2 * STEPS_PER_EPOCH
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {name for entry in lab.training_log(config) for name in entry if name.startswith("eval")} == {"eval_loss"}
    last = list(lab.evaluation_losses(config).values())[-1]
    assert abs(lab.exported_loss(config) - last) < 1e-4
    exported = load(lab.store.get(f"{config.model_uri}/model.safetensors"))
    base = load((lab.models / "bert-dropout/model.safetensors").read_bytes())
    frozen = {name.removeprefix("bert."): value for name, value in exported.items() if name.startswith("bert.")}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in frozen.items())
