"""Overfitting is found in curves of losses, and only there."""

import pytest

from finetune_api.v1alpha1 import Overfitting
from finetune_trainer.train.overfitting import OverfittingWatch, training_loss_before_evaluation

Curve = list[tuple[float, float]]
"""Validation loss and training loss of every evaluation."""

FALLING: Curve = [(1.30, 1.35), (1.00, 1.10), (0.80, 0.80), (0.75, 0.65)]
OVERFITTED: Curve = [*FALLING, (0.80, 0.40), (0.90, 0.25)]
CURVES: dict[str, tuple[Curve, dict[str, float | int], int | None]] = {
    "both fall": (FALLING, {}, None),
    "validation rises, training falls": (OVERFITTED, {}, 6),
    "it has risen once": (OVERFITTED[:-1], {}, None),
    "once is enough": (OVERFITTED, {"patience": 1}, 5),
    "a smaller rise is noise": ([*FALLING, (0.78, 0.4), (0.78, 0.3), (0.78, 0.2)], {}, None),
    "unless it is asked for": ([*FALLING, (0.78, 0.4), (0.78, 0.3)], {"min_rise": 0.03}, 6),
    "without a gap": ([*FALLING, (0.80, 0.64), (0.90, 0.64)], {"max_gap": 0.5}, None),
    "both rise: it diverges": ([*FALLING, (0.90, 0.70), (1.20, 0.90), (2.00, 1.50)], {}, None),
    "two apart": ([*FALLING, (0.80, 0.4), (0.76, 0.4), (0.80, 0.4)], {}, None),
    "a new lowest loss": ([*FALLING, (0.80, 0.4), (0.74, 0.4), (0.80, 0.3)], {}, None),
    "a gap without a rise": ([(0.9, 0.5), (0.8, 0.3), (0.7, 0.1), (0.7, 0.05)], {}, None),
}


@pytest.mark.parametrize("name", CURVES)
def test_overfitting_is_found_at_the_evaluation(name: str) -> None:
    curve, options, expected = CURVES[name]
    rule, watch, found = Overfitting.model_validate(options), OverfittingWatch(), None
    for number, (validation, training) in enumerate(curve, start=1):
        watch = watch.after(validation, training, 10 * number, rule)
        found = number if found is None and watch.found else found
    assert found == expected


def test_the_description_has_the_losses_of_the_first_detection() -> None:
    watch = OverfittingWatch()
    for number, (validation, training) in enumerate([*OVERFITTED, (1.5, 0.1)], start=1):
        watch = watch.after(validation, training, 10 * number, Overfitting())
    assert watch.found.startswith(
        "the training overfits: from step 40 to step 60, the validation loss rose from 0.75 to 0.9, while the training "
        "loss fell from 0.65 to 0.25; add data, or train for fewer steps"
    )


def test_the_evidence_is_that_of_the_newest_evaluation_and_then_of_the_detection() -> None:
    watch, seen = OverfittingWatch(), []
    for number, (validation, training) in enumerate([*OVERFITTED, (1.5, 0.1), (0.1, 0.1)], start=1):
        watch = watch.after(validation, training, 10 * number, Overfitting())
        assert watch.evidence is not None
        seen.append(watch.evidence)
    assert [(one.found, one.step, one.lowest_step) for one in seen] == [
        (False, 10, 10),
        (False, 20, 20),
        (False, 30, 30),
        (False, 40, 40),
        (False, 50, 40),
        *[(True, 60, 40)] * 3,
    ]
    losses = (seen[-1].validation_loss, seen[-1].training_loss)
    assert (*losses, seen[-1].lowest_validation_loss, seen[-1].training_loss_at_lowest) == (0.90, 0.25, 0.75, 0.65)


LOG = [
    {"loss": 4.0, "step": 1},
    {"loss": 2.0, "step": 2},
    {"eval_loss": 1.0, "step": 2},
    {"loss": 1.5, "step": 3},
    {"loss": 0.5, "step": 4},
    {"eval_loss": 0.9, "step": 4},
]


@pytest.mark.parametrize(
    ("log", "expected"),
    [(LOG, 1.0), (LOG[:3], 3.0), ([*LOG, {"eval_loss": 0.8, "step": 5}], 1.0)],
    ids=["since the previous evaluation", "since the start", "nothing was logged since"],
)
def test_the_training_loss_is_the_mean_before_the_evaluation(log: list[dict[str, float]], expected: float) -> None:
    assert training_loss_before_evaluation(log) == expected
