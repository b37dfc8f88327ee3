"""`spec.tracking`: where parameters, metrics and results are reported, in addition to the output of the job."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel, matching
from .scope import Scope

TRACKING_PATTERN = r"^(http|https)://[^\s/?#]+(/[^\s?#]*)?$"
"""Not the text of `ENDPOINT_PATTERN`, because messages are found by the pattern."""

TrackingUri = Annotated[
    str, matching(TRACKING_PATTERN, "a URL of an MLflow server such as https://mlflow.example.com", max_length=512)
]
"""URL of an MLflow tracking server, without credentials."""


class TensorBoard(ApiModel, scope=Scope.ATTEMPT):
    """Event files for TensorBoard in `runs/<run>/tensorboard/` of the output."""


class MLflow(ApiModel, scope=Scope.ATTEMPT):
    """An MLflow server. It gets one MLflow run for each run of the job.

    Credentials are the variables of MLflow, such as `MLFLOW_TRACKING_TOKEN`, in `workers.env`.
    """

    tracking_uri: TrackingUri
    """URL of the server."""

    experiment: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the experiment. It is created if it does not exist."""


class Tracking(ApiModel, scope=Scope.ATTEMPT):
    """Where parameters, metrics and results are reported. Failures are warnings in status, and never fail a run.

    The trainer image must have the libraries, the extra `tracking`.
    """

    tensor_board: TensorBoard | None = None
    """Write event files for TensorBoard."""

    mlflow: MLflow | None = None
    """Log to an MLflow server."""
