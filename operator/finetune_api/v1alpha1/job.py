"""The FineTuneJob object."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field

from ..constants import API_VERSION, JOB_NAME_PATTERN, KIND, MAX_JOB_NAME
from .base import ApiModel, matching
from .data import Data
from .method import Method
from .methods.full import FullFineTune
from .model import Model
from .results import Checkpoint, Evaluation, Output, Storage
from .schedule import RunSchedule
from .scope import Scope
from .stages import Stages
from .status import MAX_HISTORY, Status
from .tracking import Tracking
from .training import DeepSpeed, Offload, Training
from .workers import Budget, Restart, Workers


class UpdatePolicy(StrEnum):
    """What happens to an active run when a change of the spec starts a new run."""

    RESTART = "Restart"
    IGNORE = "Ignore"


class Reuse(StrEnum):
    """Whether an earlier run of the same spec is reused."""

    ALWAYS = "Always"
    NEVER = "Never"


class Spec(ApiModel):
    """One fine-tuning run: model and data in, a model in object storage out."""

    model: Model
    """The base model."""

    data: Data
    """Training data, held-out splits and how records are read."""

    method: Method = Method(full=FullFineTune())
    """Which parameters are trained. Exactly one block. Absent: a full fine-tune."""

    training: Training
    """Length, learning rate and batch."""

    deepspeed: DeepSpeed = DeepSpeed()
    """ZeRO, and additions to the DeepSpeed configuration."""

    checkpoint: Checkpoint = Checkpoint()
    """When the state of the run is saved, and which checkpoints are kept."""

    evaluation: Evaluation = Evaluation()
    """How the model is evaluated, during and after training."""

    output: Output
    """Where the output of the job is stored."""

    tracking: Tracking = Tracking()
    """Where parameters, metrics and results are reported, in addition to the output of the job."""

    storage: Storage = Storage()
    """How to connect to object storage."""

    workers: Workers = Workers()
    """Number of workers, and their resources, environment and placement."""

    stages: Stages = Stages()
    """Pods of the prepare and evaluate stages."""

    restart: Restart = Restart()
    """How often failed stages are restarted."""

    budget: Budget = Budget()
    """Limits of the run."""

    ttl_seconds_after_finished: Annotated[Annotated[int, Field(ge=0)] | None, Scope.NOW] = None
    """Delete the run's Jobs and pods this long after its end; the FineTuneJob itself is kept. Absent: keep them."""

    suspend: Annotated[bool, Scope.NOW] = False
    """True: save a checkpoint and stop. Setting it back to false resumes the run."""

    schedule: RunSchedule | None = None
    """Times at which a new run of the same spec starts. Absent: no run is started on a schedule."""

    update_policy: Annotated[UpdatePolicy, Scope.NOW] = UpdatePolicy.RESTART
    """What happens to a run with pods when a change of the spec requires a new run. Restart: it saves a checkpoint and
    stops, and the new run starts. Ignore: it continues with the earlier values until it has ended."""

    reuse: Annotated[Reuse, Scope.NOW] = Reuse.ALWAYS
    """What happens when the spec is changed back to that of a run in `status.history`. Always: that run becomes the
    current one again; it is not trained again if it was complete, and resumes from its checkpoint if it was not. With
    `evaluation.promote`, its model is evaluated again. Never: a new run starts."""

    history_limit: Annotated[int, Field(ge=0, le=MAX_HISTORY), Scope.NOW] = 10
    """Runs before the current one that are kept in `status.history`. Their files in object storage are not affected,
    see `output.keepRuns`."""

    run_nonce: Annotated[
        Annotated[str, matching(r"^[A-Za-z0-9._-]*$", "letters, digits, '.', '_' and '-'", max_length=63)] | None,
        Scope.RUN,
    ] = None
    """Free text. A changed value starts a new run even if nothing else changed."""

    def without_fixed_defaults(self) -> Self:
        """Without an `offload` of None, which stored jobs of earlier versions have instead of no value.

        With `workers.gpuMemory`, which they lack, no value lets the prepare stage choose, and None does not.
        """
        if self.workers.gpu_memory is not None or self.deepspeed.offload is not Offload.NONE:
            return self
        return self.model_copy(update={"deepspeed": self.deepspeed.model_copy(update={"offload": None})})


class Metadata(ApiModel):
    """The fields of Kubernetes object metadata that validation reads."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[
        str,
        matching(
            JOB_NAME_PATTERN,
            "a name of a-z, 0-9 and '-', with a letter or digit at both ends",
            max_length=MAX_JOB_NAME,
        ),
    ]
    """Name, a DNS label of at most 40 characters: the names of pods are derived from it."""

    namespace: str = "default"
    """Namespace."""

    uid: str = ""
    """UID, set by the API server."""

    generation: int = 1
    """Sequence number of the spec, incremented by the API server at every change."""


class FineTuneJob(ApiModel):
    """The object that users write."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    """API group and version."""

    kind: Literal["FineTuneJob"] = KIND
    """Kind."""

    metadata: Metadata
    """Name and namespace."""

    spec: Spec
    """The desired run, written by the user."""

    status: Status = Status()
    """The observed state of the job, written by the operator."""
