"""`spec.checkpoint`, `spec.evaluation`, `spec.output` and `spec.storage`: what is kept, and where."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from .base import ENDPOINT_PATTERN, ApiModel, Duration, S3Uri, SecretName, matching
from .scope import Scope

DEFAULT_MAX_LOST_WORK = "10m"
"""`checkpoint.maxLostWork` where neither it nor `everySteps` is given."""


class Checkpoint(ApiModel, scope=Scope.ATTEMPT):
    """When the state of the run is saved, and what of it is kept. At most one of `maxLostWork` and `everySteps`."""

    max_lost_work: Duration | None = None
    """Save so often that a crash loses at most this much work; less often where saves would take more than 3.5 % of the
    time, which a warning tells. Absent, and no `everySteps`: 10m."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Save after this many optimizer steps."""

    max_staleness: Duration | None = None
    """End the attempt, as a failure that is retried, where a state has not been stored for this long after it was
    taken. Absent: train on through any outage of storage."""

    keep_last: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Keep this many of the newest checkpoints: should the newest one prove damaged, the next one is gone on from."""

    keep_best: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Keep also this many of those that were the best so far when they were saved. Early stopping tells which, and
    needs at least 1."""

    keep_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Keep for good the first checkpoint at or after every multiple of this many steps. 1 keeps all. Absent: none."""

    def without_fixed_defaults(self) -> Self:
        """Without `maxLostWork` where it has its default and decides."""
        is_default = self.max_lost_work == DEFAULT_MAX_LOST_WORK and self.every_steps is None
        return self.model_copy(update={"max_lost_work": None}) if is_default else self


class Evaluation(ApiModel, scope=Scope.EVALUATION):
    """How the model is judged, during and after training."""

    every_steps: Annotated[Annotated[int, Field(ge=1, le=10_000_000)] | None, Scope.RUN] = None
    """Evaluate the validation split after this many optimizer steps. Absent: at the end of every epoch."""

    baseline: bool = True
    """Evaluate the base model on the test split too, by the same code."""

    prompts: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=8192)], ...], Field(max_length=32)] = ()
    """Prompts that are answered before and after training, for the report. CausalLM only."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Length of those answers, in tokens."""


class ArtifactFormat(StrEnum):
    """Which shape of the model is exported."""

    MERGED = "Merged"
    ADAPTER = "Adapter"


class Output(ApiModel, scope=Scope.RUN):
    """Where everything that the job makes is kept."""

    uri: S3Uri
    """Prefix for data sets, checkpoints, models and reports."""

    formats: Annotated[tuple[ArtifactFormat, ...], Field(min_length=1, max_length=2), Scope.EVALUATION] = (
        ArtifactFormat.MERGED,
    )
    """Merged is a complete model in Hugging Face layout; Adapter is the PEFT adapter alone."""


class Storage(ApiModel, scope=Scope.ATTEMPT):
    """How object storage is reached. Absent fields come from the operator's settings."""

    endpoint: (
        Annotated[
            str,
            matching(
                ENDPOINT_PATTERN,
                "a URL such as https://s3.example.com or https://host/storage/v1/s3",
                max_length=512,
            ),
        ]
        | None
    ) = None
    """URL of an S3-compatible server, with the path in front of the buckets where it has one. Absent: AWS."""

    region: Annotated[str, matching(r"^[a-z0-9-]+$", "a region such as us-east-1", max_length=64)] | None = None
    """Region to sign requests for. Absent: us-east-1."""

    path_style: bool | None = None
    """`endpoint/bucket/key` instead of `bucket.endpoint/key`. Absent: true where `endpoint` is set."""

    credentials_secret: SecretName | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN, HF_TOKEN: where needed).

    The pods get them as files. Absent: the operator's default, or the workload identity of the service account.
    On one machine the environment's credentials are used.
    """
