"""`spec.tracking`: where parameters, metrics and results are reported, in addition to the output of the job."""

from enum import StrEnum
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

WANDB_PATTERN = r"^https?://[^\s/?#]+/?$"
"""The paths below are those of W&B. Not the text of another pattern, because messages are found by the pattern."""

WandBUrl = Annotated[
    str, matching(WANDB_PATTERN, "a URL of a W&B server without a path, such as https://api.wandb.ai", max_length=512)
]
"""URL of a W&B server, without credentials."""

WANDB_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._ -]*$"

WandBName = Annotated[
    str,
    matching(
        WANDB_NAME_PATTERN,
        "a name of letters, digits, '.', '_', '-' and spaces, which begins with a letter or digit",
        max_length=128,
    ),
]
"""Name of a project or entity of W&B."""


TRACKIO_PATTERN = r"^https?://[^\s/?#]+(/[^\s/?#]+)*/?$"
"""Not the text of another pattern, because messages are found by the pattern."""

TrackioUrl = Annotated[
    str, matching(TRACKIO_PATTERN, "a URL of a trackio server such as https://trackio.example.com", max_length=512)
]
"""URL of a trackio server, without the query `write_token`."""

TRACKIO_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""trackio ignores other characters, so that two names could be one project."""

TrackioName = Annotated[
    str,
    matching(
        TRACKIO_NAME_PATTERN,
        "a name of letters, digits, '_' and '-', which begins with a letter or digit",
        max_length=128,
    ),
]
"""Name of a project of trackio."""


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


class WandBMode(StrEnum):
    """How a run gets to W&B."""

    OFFLINE = "Offline"
    ONLINE = "Online"


class WandB(ApiModel, scope=Scope.ATTEMPT):
    """Weights & Biases. All attempts and evaluations of a run are one W&B run.

    With the mode `Online`, the API key is the variable `WANDB_API_KEY` in `workers.env`.
    """

    project: WandBName
    """Name of the project. It is created if it does not exist."""

    entity: WandBName | None = None
    """User or team that owns the project. Absent: the default entity of the API key."""

    mode: WandBMode = WandBMode.OFFLINE
    """`Offline`: store a file for `wandb sync` in `runs/<run>/wandb/` of the output. `Online`: log to a server."""

    base_url: WandBUrl | None = None
    """URL of the server, such as `https://api.wandb.ai`. Required with the mode `Online`, and only allowed with it."""


class Trackio(ApiModel, scope=Scope.ATTEMPT):
    """A trackio server. All attempts and evaluations of a run are one run of trackio.

    The write token of the server is the variable `TRACKIO_WRITE_TOKEN` in `workers.env`.
    """

    server_url: TrackioUrl
    """URL of the server."""

    project: TrackioName
    """Name of the project. It is created if it does not exist."""


class Tracking(ApiModel, scope=Scope.ATTEMPT):
    """Where parameters, metrics and results are reported. Failures are warnings in status, and never fail a run.

    The trainer image must have the libraries, the extra `tracking`.
    """

    tensor_board: TensorBoard | None = None
    """Write event files for TensorBoard."""

    mlflow: MLflow | None = None
    """Log to an MLflow server."""

    wandb: WandB | None = None
    """Log to Weights & Biases, or store files for it."""

    trackio: Trackio | None = None
    """Log to a trackio server."""
