"""FineTuneJob v1alpha1, one file per block."""

from .base import DataUri, ModelUri, Quantity, S3Uri
from .data import BadRecordAction, Cleaning, Columns, Data, DataFormat, Holdout, Packing, Source
from .job import FineTuneJob, Metadata, Reuse, Spec, UpdatePolicy
from .method import Method
from .methods.base import MethodBlock, MethodSupport
from .methods.full import FullFineTune
from .methods.lora import Lora
from .metrics import METRIC_SUPPORT, Metric, MetricSupport
from .model import Dtype, Model
from .results import ArtifactFormat, Checkpoint, Evaluation, Output, Storage
from .schedule import ConcurrencyPolicy, RunSchedule
from .scope import Scope
from .stages import EvaluatePod, StagePod, Stages
from .status import (
    ArtifactStatus,
    AttemptPlan,
    AttemptStatus,
    CandidateName,
    CandidateStatus,
    CheckpointStatus,
    Condition,
    CostStatus,
    DisplayStatus,
    FailureStatus,
    Outcome,
    PastRun,
    PollStatus,
    ProgressStatus,
    ResolvedStatus,
    RunStatus,
    RunTrigger,
    ScheduleStatus,
    Status,
)
from .tasks import ENTITY_PREFIXES, TASK_SUPPORT, Task, TaskSupport
from .training import DeepSpeed, EarlyStopping, Offload, Schedule, Training, Warmup
from .workers import Budget, Cache, EnvVar, EnvVarSource, KeySelector, Resources, Restart, Toleration, Workers

__all__ = [
    "ENTITY_PREFIXES",
    "METRIC_SUPPORT",
    "TASK_SUPPORT",
    "ArtifactFormat",
    "ArtifactStatus",
    "AttemptPlan",
    "AttemptStatus",
    "BadRecordAction",
    "Budget",
    "Cache",
    "CandidateName",
    "CandidateStatus",
    "Checkpoint",
    "CheckpointStatus",
    "Cleaning",
    "Columns",
    "ConcurrencyPolicy",
    "Condition",
    "CostStatus",
    "Data",
    "DataFormat",
    "DataUri",
    "DeepSpeed",
    "DisplayStatus",
    "Dtype",
    "EarlyStopping",
    "EnvVar",
    "EnvVarSource",
    "EvaluatePod",
    "Evaluation",
    "FailureStatus",
    "FineTuneJob",
    "FullFineTune",
    "Holdout",
    "KeySelector",
    "Lora",
    "Metadata",
    "Method",
    "MethodBlock",
    "MethodSupport",
    "Metric",
    "MetricSupport",
    "Model",
    "ModelUri",
    "Offload",
    "Outcome",
    "Output",
    "Packing",
    "PastRun",
    "PollStatus",
    "ProgressStatus",
    "Quantity",
    "ResolvedStatus",
    "Resources",
    "Restart",
    "Reuse",
    "RunSchedule",
    "RunStatus",
    "RunTrigger",
    "S3Uri",
    "Schedule",
    "ScheduleStatus",
    "Scope",
    "Source",
    "Spec",
    "StagePod",
    "Stages",
    "Status",
    "Storage",
    "Task",
    "TaskSupport",
    "Toleration",
    "Training",
    "UpdatePolicy",
    "Warmup",
    "Workers",
]
