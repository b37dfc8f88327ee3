"""The conditions of a promotion: evidence -> checks."""

import math
from typing import Any

import pytest

from finetune_api.comparison import OVERFLOW
from finetune_api.v1alpha1 import Metric, Promotion
from finetune_trainer.evaluate.gate import Evidence, checks
from finetune_trainer.evaluate.significance import PairedTest
from promoted_models import StoredModel

URI = "s3://bucket/out/runs/r0001-1f3a9c42/model"
TUNED = {Metric.LOSS: 0.4, Metric.ACCURACY: 0.9, Metric.MACRO_F1: 0.8}
WORSE = {Metric.LOSS: 0.5, Metric.ACCURACY: 0.8, Metric.MACRO_F1: 0.7}
BETTER = {Metric.LOSS: 0.3, Metric.ACCURACY: 0.95, Metric.MACRO_F1: 0.85}
NAN = dict.fromkeys(TUNED, math.nan)


def paired(better: int, worse: int, p_value: float) -> PairedTest:
    return PairedTest(name="McNemar, exact", better=better, worse=worse, same=10, p_value=p_value)


CLEAR, UNCLEAR, REVERSED = paired(30, 5, 0.001), paired(6, 4, 0.75), paired(5, 30, 0.001)


def evidence(rules: dict[str, Any], **fields: Any) -> Evidence:
    known: dict[str, Any] = {"metric": Metric.ACCURACY, "tuned": TUNED, "baseline": WORSE}
    return Evidence(rules=Promotion.model_validate(rules), **(known | fields))


def against(figures: dict[Metric, float], test: PairedTest | None = CLEAR) -> dict[str, Any]:
    return {"promoted_uri": URI, "promoted": figures, "paired_test": test}


def threshold(**fields: Any) -> dict[str, Any]:
    return {"thresholds": [{"metric": "Accuracy", **fields}]}


LOSS = {"metric": Metric.LOSS}


@pytest.mark.parametrize(
    ("rules", "fields", "passes"),
    [
        pytest.param({}, {}, True, id="the first model"),
        pytest.param({}, {"baseline": {}}, True, id="the first model without a baseline"),
        pytest.param({}, {"tuned": {}}, False, id="nothing was measured"),
        # Thresholds
        pytest.param(threshold(min=0.9), {}, True, id="equal to the minimum"),
        pytest.param(threshold(min=0.91), {}, False, id="below the minimum"),
        pytest.param(threshold(max=0.9), {}, True, id="equal to the maximum"),
        pytest.param(threshold(max=0.89), {}, False, id="above the maximum"),
        pytest.param(threshold(min=0.8, max=0.95), {}, True, id="between both"),
        pytest.param(threshold(min=0.0), {"tuned": NAN}, False, id="NaN is not at least 0"),
        pytest.param(threshold(max=1.0), {"tuned": NAN}, False, id="NaN is not at most 1"),
        pytest.param({"thresholds": [{"metric": "Loss", "max": 0.3}]}, {}, False, id="a loss above its maximum"),
        pytest.param({"thresholds": [{"metric": "EntityF1", "min": 0}]}, {}, False, id="an unmeasured metric"),
        pytest.param(
            {"thresholds": [{"metric": "Perplexity", "max": 1e300}]},
            {"tuned": {Metric.PERPLEXITY: OVERFLOW}, "metric": Metric.PERPLEXITY},
            False,
            id="a perplexity that overflowed",
        ),
        # Base model
        pytest.param({"minGainOverBaseModel": 0.1}, {}, True, id="0.9 is 0.1 better than 0.8 despite rounding"),
        pytest.param({"minGainOverBaseModel": 0.11}, {}, False, id="too small a gain over the base model"),
        pytest.param({"minGainOverBaseModel": 0}, {"baseline": BETTER}, False, id="worse than the base model"),
        pytest.param({"minGainOverBaseModel": -1}, {"baseline": NAN}, False, id="a base model with NaN"),
        pytest.param({"minGainOverBaseModel": -1}, {"baseline": {}}, False, id="the base model was not evaluated"),
        pytest.param({"minGainOverBaseModel": 0.1}, LOSS, True, id="a lower loss is a gain"),
        pytest.param({"minGainOverBaseModel": 0.0}, LOSS | {"baseline": BETTER}, False, id="a higher loss is none"),
        # Regression sets
        pytest.param({"maxRegression": 0.1}, {"regression_sets": {"a": (BETTER, TUNED)}}, True, id="a bit worse"),
        pytest.param({"maxRegression": 0.04}, {"regression_sets": {"a": (BETTER, TUNED)}}, False, id="too much worse"),
        pytest.param(
            {"maxRegression": 0.1},
            {"regression_sets": {"a": (TUNED, TUNED), "b": (TUNED, WORSE)}},
            True,
            id="exactly as much worse as is allowed on one of two sets",
        ),
        pytest.param(
            {"maxRegression": 0.1},
            {"regression_sets": {"a": (TUNED, TUNED), "b": (BETTER, WORSE)}},
            False,
            id="too much worse on one of two sets",
        ),
        pytest.param({"maxRegression": 0.0}, {"regression_sets": {"a": (WORSE, TUNED)}}, True, id="better on a set"),
        pytest.param({"maxRegression": 9.0}, {"regression_sets": {"a": ({}, TUNED)}}, False, id="a set without base"),
        pytest.param({"maxRegression": 9.0}, {"regression_sets": {"a": (TUNED, NAN)}}, False, id="NaN on a set"),
        pytest.param({}, {"regression_sets": {"a": (BETTER, WORSE)}}, True, id="sets that are not a condition"),
        # Promoted model
        pytest.param({}, against(WORSE), True, id="better than the promoted model"),
        pytest.param({}, against(BETTER), False, id="worse than the promoted model"),
        pytest.param({}, against(TUNED, UNCLEAR), False, id="as good as the promoted model"),
        pytest.param({"maxPValue": 1}, against(TUNED, None), True, id="as good as the promoted model without a test"),
        pytest.param({"maxPValue": 1}, against(BETTER, None), False, id="worse than the promoted model without a test"),
        pytest.param({"minGainOverPromoted": 0.1}, against(WORSE), True, id="exactly the required gain"),
        pytest.param({"minGainOverPromoted": 0.11}, against(WORSE), False, id="too small a gain"),
        pytest.param({"minGainOverPromoted": -0.1, "maxPValue": 1}, against(BETTER), True, id="a tolerated loss"),
        pytest.param({"minGainOverPromoted": 0.05}, against(WORSE) | LOSS, True, id="the loss is lower"),
        pytest.param({}, against(BETTER) | LOSS, False, id="the loss is higher"),
        pytest.param({}, against(NAN), False, id="the promoted model has NaN"),
        pytest.param({}, against(WORSE) | {"tuned": NAN}, False, id="the model has NaN"),
        pytest.param({"maxPValue": 1}, against({}), False, id="the metric of the promoted model is missing"),
        # Paired test
        pytest.param({}, against(WORSE, UNCLEAR), False, id="not significant"),
        pytest.param({"maxPValue": 0.75}, against(WORSE, UNCLEAR), True, id="exactly the allowed p"),
        pytest.param({"maxPValue": 1}, against(WORSE, UNCLEAR), True, id="no test"),
        pytest.param({}, against(WORSE, REVERSED), False, id="significant in the other direction"),
        pytest.param({}, against(WORSE, None), False, id="the test is missing"),
        pytest.param({}, against(WORSE, paired(0, 0, 1.0)), False, id="no example differs"),
        pytest.param({}, against(WORSE, paired(30, 5, math.nan)), False, id="p is NaN"),
        # Obstacles
        pytest.param({}, against({}, None) | {"obstacle": "it has other labels"}, False, id="cannot be compared"),
        pytest.param(
            {"maxPValue": 1, "minGainOverPromoted": -9},
            against({}, None) | {"obstacle": "it has other labels"},
            False,
            id="cannot be compared, even if any gain is enough",
        ),
        pytest.param({}, {"record_error": "promoted.json is damaged"}, False, id="unknown which model is promoted"),
        pytest.param({}, {"rolled_back": StoredModel("s3://b/o", 1, {}).entry}, False, id="rolled back before"),
        # Several
        pytest.param(threshold(min=0.5) | {"minGainOverBaseModel": 0.2}, against(WORSE), False, id="one of two fails"),
        pytest.param(
            threshold(min=0.5) | {"minGainOverBaseModel": 0.1}, against(WORSE), True, id="all of several hold"
        ),
    ],
)
def test_a_model_is_promoted_only_if_every_condition_holds(rules, fields, passes):
    found = checks(evidence(rules, **fields))
    assert all(check.holds for check in found) == passes
    assert passes or [check.text for check in found if not check.holds]


def test_every_check_states_its_values_and_what_is_required():
    rules = {"thresholds": [{"metric": "Accuracy", "min": 0.95}, {"metric": "Loss", "max": 0.5}]}
    rules |= {"minGainOverBaseModel": 0.05, "minGainOverPromoted": 0.2}
    found = checks(evidence(rules, **against(WORSE)))
    assert [(check.holds, check.text) for check in found] == [
        (False, "Accuracy 0.9 must be at least 0.95"),
        (True, "Loss 0.4 must be at most 0.5"),
        (True, "Accuracy gain over the base model, 0.1 (0.8 to 0.9), must be at least 0.05"),
        (False, "Accuracy gain over the promoted model, 0.1 (0.8 to 0.9), must be at least 0.2"),
        (
            True,
            "McNemar, exact against the promoted model: p = 0.001 must be at most 0.05, with more examples better (30) "
            "than worse (5)",
        ),
    ]


def test_an_obstacle_is_reported_with_the_way_to_go_on():
    found = checks(evidence({}, promoted_uri=URI, obstacle="it has other labels"))
    assert [check.text for check in found] == [
        f"the promoted model {URI} cannot be compared: it has other labels; `finetune promote --force` promotes this "
        "model without a comparison"
    ]
