"""FineTuneJob, whole."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ..constants import API_VERSION, JOB_NAME_PATTERN, KIND, MAX_JOB_NAME
from .base import ApiModel, matching
from .data import Data
from .method import Method
from .methods.full import FullFineTune
from .model import Model
from .results import Checkpoint, Evaluation, Output, Storage
from .scope import Scope
from .stages import Stages
from .status import Status
from .training import DeepSpeed, Training
from .workers import Budget, Restart, Workers


class Spec(ApiModel):
    """One fine-tuning run: model and data in, a model in object storage out."""

    model: Model
    """The base model."""

    data: Data
    """What the model learns from."""

    method: Method = Method(full=FullFineTune())
    """Which parameters move: exactly one block. Absent: a full fine-tune."""

    training: Training
    """Length, learning rate and batch."""

    deepspeed: DeepSpeed = DeepSpeed()
    """ZeRO and DeepSpeed's own configuration."""

    checkpoint: Checkpoint = Checkpoint()
    """When the state of the run is saved, and which checkpoints are kept."""

    evaluation: Evaluation = Evaluation()
    """How the model is judged."""

    output: Output
    """Where everything that the job makes is kept."""

    storage: Storage = Storage()
    """How object storage is reached."""

    workers: Workers = Workers()
    """How many workers, and what each gets."""

    stages: Stages = Stages()
    """Pods of the prepare and evaluate stages."""

    restart: Restart = Restart()
    """How often training is started again."""

    budget: Budget = Budget()
    """What the run may use up."""

    ttl_seconds_after_finished: Annotated[Annotated[int, Field(ge=0)] | None, Scope.NOW] = None
    """Remove the run's Jobs and pods this long after its end; the object itself stays. Absent: they stay too."""

    suspend: Annotated[bool, Scope.NOW] = False
    """Stop with the state saved; setting it back to false resumes."""

    run_id: Annotated[
        Annotated[str, matching(r"^[A-Za-z0-9._-]*$", "letters, digits, '.', '_' and '-'", max_length=63)] | None,
        Scope.RUN,
    ] = None
    """Free text. A changed value starts a new run even if nothing else changed."""


class Metadata(ApiModel):
    """The part of Kubernetes' object metadata that the job's own rules read."""

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
    """Identity, given by the API server."""

    generation: int = 1
    """Counts the changes of the spec."""


class FineTuneJob(ApiModel):
    """The object that users write."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    """API group and version."""

    kind: Literal["FineTuneJob"] = KIND
    """Kind."""

    metadata: Metadata
    """Name and namespace."""

    spec: Spec
    """What the user wants."""

    status: Status = Status()
    """What the operator has seen and done."""
