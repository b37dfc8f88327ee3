"""A run that is killed and resumed logs the same figures, to the last bit, as one that is not."""

from itertools import product

import pytest

from train_lab import STEPS_PER_EPOCH, Lab

MID_EPOCH = 2
CASES = [
    pytest.param(zero, method, kind, id=f"zero{zero}-{method}-{kind}")
    for zero, method, kind in product((0, 1, 2, 3), ("full", "lora"), ("bert-dropout", "llama"))
]


@pytest.mark.parametrize(("zero", "method", "kind"), CASES)
def test_losses_after_kills_in_mid_epoch_and_at_its_end_are_bitwise_equal(
    lab: Lab, zero: int, method: str, kind: str
) -> None:
    blocks = {"method": {method: {"dropout": 0.1} if method == "lora" else {}}, "kind": kind, "zero": zero}
    through = lab.config(f"through-{zero}-{method}-{kind}", **blocks)
    assert lab.run(through).exit_codes == [0, 0]

    name = f"killed-{zero}-{method}-{kind}"
    saves = {"checkpoint": {"everySteps": 1}}
    for attempt, saved in ((1, MID_EPOCH), (2, STEPS_PER_EPOCH)):
        config = lab.config(name, attempt=attempt, **blocks, **saves)
        killed = lab.run(config, TEST_END="kill", TEST_END_STEP=str(saved))
        assert killed.exit_codes == [-9, -9]
    config = lab.config(name, attempt=3, **blocks, **saves)
    last = lab.run(config)
    assert last.exit_codes == [0, 0], last.output
    assert last.message.progress is not None
    # The save of that very step is left out where the one before it is still being stored.
    assert STEPS_PER_EPOCH <= (last.message.progress.resumed_from_step or 0) < 2 * STEPS_PER_EPOCH

    assert lab.training_log(config) == lab.training_log(through)
