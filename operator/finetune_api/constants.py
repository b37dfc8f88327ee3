"""Names that several packages use: API group, labels, environment variables, conditions, reasons."""

from enum import StrEnum
from typing import Final

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "finetune.dev/v1alpha1"
KIND: Final = "FineTuneJob"
PLURAL: Final = "finetunejobs"
SINGULAR: Final = "finetunejob"
SHORT_NAMES: Final = ("ftj",)
CATEGORIES: Final = ("all", "ml")

MAX_JOB_NAME: Final = 40
"""The longest child name, `<name>-r<run>-train-a<attempt>-<index>`, must fit into a DNS label of 63 characters."""

JOB_NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

UNOBSERVED_GENERATION: Final = -1
"""`status.observedGeneration` of an object until the operator has written its status."""

# Labels of every child.
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "finetune-operator"
LABEL_JOB: Final = "finetune.dev/job"
LABEL_JOB_UID: Final = "finetune.dev/job-uid"
"""Distinguishes the pods of a deleted job, which may still be terminating, from those of a new job with its name."""
LABEL_RUN: Final = "finetune.dev/run"
LABEL_STAGE: Final = "finetune.dev/stage"
LABEL_ATTEMPT: Final = "finetune.dev/attempt"
LABEL_USABLE: Final = "finetune.dev/usable-by-jobs"
"""On a Secret or PersistentVolumeClaim, with the value `true`: jobs may use it if the operator's policy requires it."""
ANNOTATION_RUN_SPEC_HASH: Final = "finetune.dev/run-spec-hash"
"""On a Job: hash of the spec fields that determine the result. A different hash starts a new run."""
ANNOTATION_ATTEMPT_SPEC_HASH: Final = "finetune.dev/attempt-spec-hash"
"""On a Job or PodGroup: hash of the spec fields that an attempt is started with."""
ANNOTATION_ATTEMPT_PLAN: Final = "finetune.dev/attempt-plan"
"""On a Job: the plan of a training attempt as JSON, for a reconcile that finds the Job but no attempt in status."""
ANNOTATION_GPUS: Final = "finetune.dev/gpus"
"""On a Job with GPUs: their number over all its pods."""
ANNOTATION_EVALUATION_SPEC_HASH: Final = "finetune.dev/evaluation-spec-hash"
"""On a Job: hash of the spec fields that determine the evaluation and the exported formats."""

LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""On a Job: LocalQueue of Kueue, which admits it. Defined by Kueue."""
# Defined by Kubernetes.
POD_GROUP_API: Final = "scheduling.k8s.io/v1beta1"
"""Version of PodGroup, for gang scheduling. Kubernetes 1.37 has it, disabled by default; older versions do not."""
LABEL_JOB_NAME: Final = "batch.kubernetes.io/job-name"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Annotation and label of a pod: its index within its Job."""

RESERVED_KEYS: Final = frozenset({LABEL_MANAGED_BY, "job-name", "controller-uid"})
RESERVED_DOMAINS: Final = frozenset({GROUP, "batch.kubernetes.io"})
"""Labels and annotations of pods that the operator and the Job controller set: keys, and the domains of keys."""

TRAINER_CONTAINER: Final = "trainer"
CONFIG_KEY: Final = "config.json"
CONFIG_MOUNT: Final = "/etc/finetune"
SCRATCH_MOUNT: Final = "/scratch"
SHARED_MEMORY_MOUNT: Final = "/dev/shm"
CACHE_MOUNT: Final = "/cache"
CREDENTIALS_MOUNT: Final = "/etc/finetune-credentials"
VOLUMES: Final = {
    "config": CONFIG_MOUNT,
    "scratch": SCRATCH_MOUNT,
    "shared-memory": SHARED_MEMORY_MOUNT,
    "cache": CACHE_MOUNT,
    "credentials": CREDENTIALS_MOUNT,
}
"""Name of each volume that the operator adds to pods -> its mount path. A job cannot use these names and paths."""
TERMINATION_LOG: Final = "/dev/termination-log"
NODE_LOSS_SECONDS: Final = 30
"""How long a pod stays on an unreachable node. Short network failures end sooner; a reboot takes longer."""
RENDEZVOUS_PORT: Final = 29500
PROGRESS_PORT: Final = 8080


class Stage(StrEnum):
    """What a trainer pod runs: the stages of a run, in order, and the poll, which is not part of a run."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    POLL = "poll"
    """Lists the source files of a run that has ended, to find out whether they have changed (`spec.data.poll`)."""


class Env(StrEnum):
    """Environment variables of a trainer pod, set by the operator (some with the names that torchrun uses)."""

    NODE_RANK = "FINETUNE_NODE_RANK"
    """Index of the pod within the stage's Job."""
    MASTER_ADDR = "MASTER_ADDR"
    MASTER_PORT = "MASTER_PORT"
    PROGRESS_HOST = "FINETUNE_PROGRESS_HOST"
    """Address to serve progress on. Absent: all addresses of the pod, IPv4 and IPv6."""
    PROGRESS_PORT = "FINETUNE_PROGRESS_PORT"
    SCRATCH = "FINETUNE_SCRATCH"
    """Folder for temporary files, deleted with the pod."""
    CACHE = "FINETUNE_CACHE"
    """Folder for downloaded models and data, shared by the pods of a node. Absent: a folder in SCRATCH."""
    TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
    """File for the termination message."""
    CREDENTIALS = "FINETUNE_CREDENTIALS"
    """Folder with one file per credential, named like the environment variable."""
    FORK_SERVER = "FINETUNE_FORK_SERVER"
    """Unix socket of a running fork server. Absent, or with GPUs: the supervisor starts its own."""
    # Set by the supervisor for each rank, as torchrun does.
    RANK = "RANK"
    WORLD_SIZE = "WORLD_SIZE"
    LOCAL_RANK = "LOCAL_RANK"
    LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
    OMP_NUM_THREADS = "OMP_NUM_THREADS"
    """Threads of a rank. The operator sets it for a pod with a CPU request; absent: the cores are divided among the
    ranks."""
    DS_ACCELERATOR = "DS_ACCELERATOR"
    """DeepSpeed's device, `cpu` or `cuda`."""
    STARTED_TIME = "FINETUNE_STARTED_TIME"
    """When the supervisor started, in seconds since 1970."""


RESERVED_PREFIX: Final = "FINETUNE_"
RESERVED_VARIABLES: Final = frozenset(
    {
        *(str(name) for name in Env if not name.startswith(RESERVED_PREFIX) and name is not Env.OMP_NUM_THREADS),
        "AWS_EC2_METADATA_DISABLED",
        "HOME",
        "TMPDIR",
        "USER",
    }
)
"""Variables that jobs must not set, in addition to those with the prefix: operator and supervisor set them. Another
value breaks the attempt, or gives it credentials that it must not have (those of the node, or those in a home folder on
a shared volume). A job may choose the number of threads."""


class ConditionType(StrEnum):
    """Conditions of a FineTuneJob."""

    ACCEPTED = "Accepted"
    READY = "Ready"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SAFE_TO_STOP = "SafeToStop"
    """While training: whether the grace period of the pods is long enough for a save. Absent until a save was
    measured."""
    CHECKPOINT_STALE = "CheckpointStale"
    """While training: whether a crash would now lose more work than the spec allows."""
    MODEL_AVAILABLE = "ModelAvailable"
    """Whether the run has exported a trained model. It stays True when the evaluation fails."""
    PROMOTED = "Promoted"
    """Whether the run's model was promoted. Absent until an evaluation with `spec.evaluation.promote` has decided."""
    OVERFITTING = "Overfitting"
    """Whether the training of the run overfits by the rule `spec.training.overfitting`. Absent until a validation was
    compared."""


TERMINAL_CONDITIONS: Final = frozenset({ConditionType.COMPLETE, ConditionType.FAILED})
"""One of these is True when a run has ended."""


class Reason(StrEnum):
    """Reasons of these conditions and of the corresponding Events. `reasons.py` explains each of them."""

    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_FIELDS = "UnknownFields"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    RESTARTING = "Restarting"
    ATTEMPT_FAILED = "AttemptFailed"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    STAGE_WARNING = "StageWarning"
    SPEC_CHANGED = "SpecChanged"
    NEW_RUN = "NewRun"
    NEXT_ATTEMPT = "NextAttempt"
    SAVE_FITS = "SaveFits"
    SAVE_TOO_SLOW = "SaveTooSlow"
    CHECKPOINT_IN_TIME = "CheckpointInTime"
    CHECKPOINT_LATE = "CheckpointLate"
    TRAINING_OVERFITS = "TrainingOverfits"
    NO_OVERFITTING = "NoOverfitting"
    WAITING_FOR_PODS = "WaitingForPods"
    QUEUED = "Queued"
    REQUEUED = "Requeued"
    FEWER_WORKERS = "FewerWorkers"
    CANNOT_CREATE = "CannotCreate"
    CHILD_CONFLICT = "ChildConflict"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    SUCCEEDED = "Succeeded"
    NOT_TRAINED = "NotTrained"
    EXPORTED = "Exported"
    PROMOTED = "Promoted"
    PROMOTION_REFUSED = "PromotionRefused"
    PROMOTION_CONFLICT = "PromotionConflict"
    PREPARE_FAILED = "PrepareFailed"
    EVALUATE_FAILED = "EvaluateFailed"
    PERMANENT_FAILURE = "PermanentFailure"
    RESTARTS_EXHAUSTED = "RestartsExhausted"
    REPEATED_FAILURE = "RepeatedFailure"
    DISRUPTIONS_EXHAUSTED = "DisruptionsExhausted"


class Phase(StrEnum):
    """Summary for display. Decisions are based on conditions and children instead."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    RESTARTING = "Restarting"
    EVALUATING = "Evaluating"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    INVALID = "Invalid"

    @property
    def is_terminal(self) -> bool:
        """Whether the job does not continue until it is changed: it has ended, is suspended or is invalid."""
        return self in _TERMINAL_PHASES


_TERMINAL_PHASES: Final = frozenset({Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED, Phase.INVALID})
