"""Requirements of the evaluate stage: (model, test split, spec) -> memory, GPUs, error before training."""

from typing import Any

import pytest

from factories import make_job
from finetune_api.evaluation_needs import EvaluationNeeds
from finetune_api.v1alpha1 import Dtype
from finetune_api.validation import parse_job
from finetune_trainer.data.prepare import check_evaluation_fits
from finetune_trainer.errors import BadConfigError

BILLION = 1_000_000_000


@pytest.mark.parametrize(
    ("parameters", "test_tokens", "spec", "gpus"),
    [
        (8 * BILLION, 500_000, {"workers": {"gpusPerNode": 8}}, 1),
        (8 * BILLION, 0, {"workers": {"gpusPerNode": 8}}, 1),
        (8 * BILLION, None, {"workers": {"gpusPerNode": 8}}, 1),
        (0, None, {"workers": {"gpusPerNode": 8}}, 0),
        (22_000_000, 300_000, {"workers": {"gpusPerNode": 8}}, 0),
        (8 * BILLION, 500_000, {}, 0),
        (8 * BILLION, 500_000, {"workers": {"gpusPerNode": 8}, "stages": {"evaluate": {"gpus": 0}}}, 0),
        (1000, 10, {"workers": {"gpusPerNode": 8}, "stages": {"evaluate": {"gpus": 1}}}, 1),
        (BILLION // 2, 10_000, {"workers": {"gpusPerNode": 1}}, 1),
        (BILLION // 2, 10_000, {"workers": {"gpusPerNode": 1}, "evaluation": {"baseModel": False}}, 0),
        (BILLION // 2, 10_000, {"workers": {"gpusPerNode": 1}, "evaluation": {"baseModel": False, "promote": {}}}, 1),
    ],
)
def test_an_evaluation_requests_a_gpu_only_if_a_cpu_would_take_too_long(
    parameters: int, test_tokens: int | None, spec: dict[str, Any], gpus: int
) -> None:
    job = parse_job(make_job(**{"training": {"globalBatchSize": 512}, **spec}))
    needs = EvaluationNeeds(parameters=parameters, test_tokens=test_tokens, dtype=Dtype.BFLOAT16)
    assert needs.gpus(job.spec) == gpus


@pytest.mark.parametrize(("regression_tokens", "gpus"), [(0, 0), (1_000, 0), (100_000, 1), (None, 1)])
def test_the_tokens_of_regression_sets_count(regression_tokens: int | None, gpus: int) -> None:
    spec = parse_job(make_job(training={"globalBatchSize": 512}, workers={"gpusPerNode": 1})).spec
    needs = EvaluationNeeds(
        parameters=BILLION // 2, test_tokens=1_000, dtype=Dtype.BFLOAT16, regression_tokens=regression_tokens
    )
    assert needs.gpus(spec) == gpus


@pytest.mark.parametrize(
    ("limit", "dtype", "message"),
    [
        (None, Dtype.FLOAT32, ""),
        ("64Gi", Dtype.FLOAT32, ""),
        ("20Gi", Dtype.BFLOAT16, ""),
        ("20Gi", Dtype.FLOAT32, "memory must be at least 37Gi to evaluate a model of 8,000,000,000 parameters"),
        ("2Gi", Dtype.BFLOAT16, "memory must be at least 19Gi to evaluate a model of 8,000,000,000 parameters"),
    ],
)
def test_a_model_that_does_not_fit_into_the_evaluate_pod_is_rejected_before_training(
    limit: str | None, dtype: Dtype, message: str
) -> None:
    resources = {} if limit is None else {"limits": {"memory": limit}}
    spec = parse_job(make_job(stages={"evaluate": {"resources": resources}})).spec
    needs = EvaluationNeeds(parameters=8 * BILLION, test_tokens=0, dtype=dtype)
    if not message:
        check_evaluation_fits(spec, needs)
        return
    with pytest.raises(BadConfigError, match=message):
        check_evaluation_fits(spec, needs)
