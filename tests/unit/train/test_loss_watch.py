"""A validation loss far above the start of the training is noticed, though it is finite."""

import pytest

from finetune_trainer.train.loss_watch import LossWatch


@pytest.mark.parametrize(
    ("validation_losses", "is_last", "warns"),
    [
        pytest.param([4.0, 3.0], True, False, id="it falls"),
        pytest.param([9.0, 11.5], True, False, id="it rises a little"),
        pytest.param([1190.0], False, False, id="one evaluation may be an outlier"),
        pytest.param([1190.0], True, True, id="the last evaluation decides alone"),
        pytest.param([1190.0, 358.0], False, True, id="two in a row"),
        pytest.param([1190.0, 5.0, 358.0], False, False, id="two apart"),
    ],
)
def test_a_loss_far_above_its_start_for_several_evaluations_is_warned_of(
    validation_losses: list[float], is_last: bool, warns: bool
) -> None:
    watch = LossWatch().started_at(5.8).started_at(100.0)
    for loss in validation_losses:
        watch = watch.after(loss)
    warning = watch.warning(is_last=is_last, learning_rate=10.0)
    assert bool(warning) is warns
    if warns:
        assert "(5.8)" in warning
        assert "lower spec.training.learningRate (now 10)" in warning
