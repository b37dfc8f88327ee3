"""What steps take longer beside an upload, learnt from the steps themselves."""

from collections.abc import Sequence

import pytest

from finetune_trainer.train.drag import Drag


def learnt(quiet: Sequence[float], *saves: Sequence[float]) -> float:
    """After an attempt's first steps, of steps beside nothing, then those beside each save."""
    drag = Drag()
    for _ in range(5):
        drag.step(90.0, beside=False)
    for seconds in quiet:
        drag.step(seconds, beside=False)
    for save in saves:
        drag.save_begins()
        for seconds in save:
            drag.step(seconds, beside=True)
    drag.save_begins()
    return drag.seconds


SAVES = [
    pytest.param([[1.2] * 5], 1.0, id="what all of them take longer"),
    pytest.param([[1.2] * 5, [1.4] * 5], 1.5, id="the mean of saves"),
    pytest.param([[1.3] * 5, [0.9] * 5], 0.5, id="what other loads do to one is made good by another"),
    pytest.param([[0.9] * 5], 0.0, id="never less than nothing"),
    pytest.param([[1.2] * 4 + [60.0]], 1.8, id="one that takes a minute has another reason"),
    pytest.param([[60.0] * 5, *[[1.2] * 5] * 5], 1.0, id="only the last five saves count"),
    pytest.param([[]], 0.0, id="one that was stored within no step"),
]


@pytest.mark.parametrize(("saves", "seconds"), SAVES)
def test_steps_beside_an_upload_are_compared_with_those_beside_none(saves: list[list[float]], seconds: float) -> None:
    assert learnt([1.0] * 10, *saves) == pytest.approx(seconds)


def test_a_slow_step_beside_nothing_is_not_what_steps_usually_take() -> None:
    assert learnt([90.0, *[1.0] * 99], [1.2] * 10) == pytest.approx(10 * (1.2 - 1.01))


def test_without_steps_to_compare_with_nothing_is_known() -> None:
    assert learnt([], [1.2] * 5) == 0.0
    assert learnt([1.0], [1.2] * 5) == 0.0
