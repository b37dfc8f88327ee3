"""`spec.evaluation.promote`: what a model must achieve on the test split before it replaces the promoted one."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel, matching
from .metrics import Metric
from .scope import Scope
from .tracking import TrackingUri

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""YAML can contain infinity and NaN, but JSON cannot."""


class Threshold(ApiModel, scope=Scope.EVALUATION):
    """Bounds of one metric of the test split. At least one of `min` and `max`."""

    metric: Metric
    """Metric of the task."""

    min: Finite | None = None
    """The metric must be at least this."""

    max: Finite | None = None
    """The metric must be at most this."""


class ModelRegistry(ApiModel, scope=Scope.EVALUATION):
    """The model registry of an MLflow server, in which the promoted model is registered.

    A version of the registered model has the address of the model in the output; its files are not uploaded.
    Credentials are the variables of MLflow in `workers.env`.
    """

    tracking_uri: TrackingUri | None = None
    """URL of the server. Absent: that of `tracking.mlflow`."""

    model: Annotated[
        str,
        matching(r"^[^/:'\"\s][^/:'\"\n]{0,254}$", "a name without '/', ':' and quotes", max_length=255),
    ]
    """Name of the registered model. It is created if it does not exist."""

    alias: Annotated[
        str, matching(r"^[A-Za-z0-9_-]+$", "an alias of letters, digits, '_' and '-', such as champion", max_length=255)
    ] = "champion"
    """Alias that is moved to the version of the promoted model, also by `finetune promote` and `rollback`."""


class Promotion(ApiModel, scope=Scope.EVALUATION):
    """Conditions under which the evaluate stage promotes the model. All of them must hold.

    `{}` promotes the first model, and then each model that is significantly better than the promoted one.
    """

    metric: Metric | None = None
    """Metric that gains are computed from. Absent: the metric by which the report compares the models."""

    thresholds: Annotated[tuple[Threshold, ...], Field(max_length=8)] = ()
    """Bounds of metrics of the test split."""

    min_gain_over_base_model: Finite | None = None
    """Minimum improvement over the base model, in units of the metric; positive is better, also for Loss. Requires
    `evaluation.baseModel`. Absent: the base model is not compared."""

    min_gain_over_promoted: Finite = 0.0
    """Minimum improvement over the promoted model, which is evaluated on the test split of this run; positive is
    better, also for Loss."""

    max_regression: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """Maximum by which the metric of each set of `evaluation.regressionSets` may be worse than that of the base model,
    in units of the metric. Requires `evaluation.regressionSets` and `evaluation.baseModel`. Absent: the sets are not a
    condition."""

    max_p_value: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Maximum p-value of the paired test against the promoted model on the same examples. 1: no test."""

    mlflow: ModelRegistry | None = None
    """Register the promoted model in MLflow. A failure is a warning, and the next evaluation or `finetune promote` of
    the run repeats it."""
