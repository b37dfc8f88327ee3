"""Early stopping, as a walk through evaluations."""

import pytest

from finetune_api.v1alpha1 import EarlyStopping, Metric
from finetune_trainer.train.stopping import BestState

WALKS = [
    pytest.param(EarlyStopping(patience=2), [3.0, 2.0, 2.5, 2.1], (2, True), id="loss rises"),
    pytest.param(EarlyStopping(patience=2), [3.0, 2.0, 2.5, 1.9], (4, False), id="a better one resets the count"),
    pytest.param(EarlyStopping(patience=1, min_delta=0.5), [3.0, 2.6], (1, True), id="too small a gain is none"),
    pytest.param(EarlyStopping(patience=1), [3.0, 3.0], (1, True), id="equal is not better"),
    pytest.param(EarlyStopping(patience=2, metric=Metric.ACCURACY), [0.5, 0.7, 0.6], (2, False), id="accuracy rises"),
    pytest.param(EarlyStopping(patience=1, metric=Metric.MACRO_F1), [0.5, 0.4], (1, True), id="macro F1 falls"),
    pytest.param(EarlyStopping(patience=1, metric=Metric.PERPLEXITY), [20.0, 10.0], (2, False), id="perplexity falls"),
]


@pytest.mark.parametrize(("rule", "values", "expected"), WALKS)
def test_best_step_and_end(rule: EarlyStopping, values: list[float], expected: tuple[int, bool]) -> None:
    state = BestState()
    for step, value in enumerate(values, start=1):
        state = state.after(value, step, rule)
    assert (state.step, state.exhausted(rule)) == expected
