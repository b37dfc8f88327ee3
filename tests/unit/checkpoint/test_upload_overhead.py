"""How much longer steps take during an upload, measured from the steps themselves."""

from collections.abc import Sequence

import pytest

from finetune_trainer.checkpoint.save_interval import UploadOverhead


def measured(idle: Sequence[float], *saves: Sequence[float]) -> float:
    """Measure after the first steps of an attempt: steps without an upload, then the steps during each save."""
    overhead = UploadOverhead()
    for _ in range(5):
        overhead.step(90.0, is_uploading=False)
    for seconds in idle:
        overhead.step(seconds, is_uploading=False)
    for save in saves:
        overhead.start_save()
        for seconds in save:
            overhead.step(seconds, is_uploading=True)
    overhead.start_save()
    return overhead.seconds


SAVES = [
    pytest.param([[1.2] * 5], 1.0, id="total over all steps"),
    pytest.param([[1.2] * 5, [1.4] * 5], 1.5, id="the mean of saves"),
    pytest.param([[1.3] * 5, [0.9] * 5], 0.5, id="other load averages out"),
    pytest.param([[0.9] * 5], 0.0, id="never negative"),
    pytest.param([[1.2] * 4 + [60.0]], 1.8, id="a step that takes a minute has another reason"),
    pytest.param([[60.0] * 5, *[[1.2] * 5] * 5], 1.0, id="only the last five saves count"),
    pytest.param([[]], 0.0, id="a save that was stored within one step"),
]


@pytest.mark.parametrize(("saves", "seconds"), SAVES)
def test_steps_during_an_upload_are_compared_with_steps_without_one(saves: list[list[float]], seconds: float) -> None:
    assert measured([1.0] * 10, *saves) == pytest.approx(seconds)


def test_a_slow_step_without_an_upload_is_capped() -> None:
    assert measured([90.0, *[1.0] * 99], [1.2] * 10) == pytest.approx(10 * (1.2 - 1.01))


def test_without_steps_to_compare_with_the_overhead_is_unknown() -> None:
    assert measured([], [1.2] * 5) == 0.0
    assert measured([1.0], [1.2] * 5) == 0.0
