"""FineTuneJob v1alpha1, one file per block."""

from .base import DataUri, ModelUri, Quantity, S3Uri
from .data import BadRecordAction, Columns, Data, DataFormat, Holdout, Packing, Source
from .job import FineTuneJob, Metadata, Spec
from .method import FullFineTune, Lora, Method
from .model import Dtype, Model, Task
from .results import ArtifactFormat, Checkpoint, Evaluation, Output, Storage
from .status import (
    ArtifactStatus,
    AttemptStatus,
    CheckpointStatus,
    ChosenStatus,
    Condition,
    EvaluationStatus,
    FailureStatus,
    Outcome,
    ProgressStatus,
    Status,
)
from .training import DeepSpeed, EarlyStopping, Metric, Offload, Schedule, Training, Warmup
from .workers import Budget, Cache, EnvVar, EnvVarSource, KeySelector, Resources, Restart, Toleration, Workers

__all__ = [
    "ArtifactFormat",
    "ArtifactStatus",
    "AttemptStatus",
    "BadRecordAction",
    "Budget",
    "Cache",
    "Checkpoint",
    "CheckpointStatus",
    "ChosenStatus",
    "Columns",
    "Condition",
    "Data",
    "DataFormat",
    "DataUri",
    "DeepSpeed",
    "Dtype",
    "EarlyStopping",
    "EnvVar",
    "EnvVarSource",
    "Evaluation",
    "EvaluationStatus",
    "FailureStatus",
    "FineTuneJob",
    "FullFineTune",
    "Holdout",
    "KeySelector",
    "Lora",
    "Metadata",
    "Method",
    "Metric",
    "Model",
    "ModelUri",
    "Offload",
    "Outcome",
    "Output",
    "Packing",
    "ProgressStatus",
    "Quantity",
    "Resources",
    "Restart",
    "S3Uri",
    "Schedule",
    "Source",
    "Spec",
    "Status",
    "Storage",
    "Task",
    "Toleration",
    "Training",
    "Warmup",
    "Workers",
]
