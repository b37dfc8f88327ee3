"""Exit codes of the trainer, from which the operator decides whether a failed attempt is retried.

The meanings are defined here. Numbers from 64 to 78 are taken from `sysexits.h` where it has a similar one, so that
they differ from those of shells and signals; the definitions of that header do not apply.
"""

from enum import IntEnum

from .constants import Stage


class ExitCode(IntEnum):
    """Exit status of a trainer pod."""

    DONE = 0
    USAGE = 64
    BAD_DATA = 65
    MODEL_UNUSABLE = 66
    STORAGE_UNREACHABLE = 69
    INTERNAL_ERROR = 70
    STOPPED = 75
    """Stopped on request after saving a checkpoint."""
    ACCESS_DENIED = 77
    BAD_CONFIG = 78
    PROGRAM_ERROR = 79
    """A bug that would occur again with the same input, such as a KeyError."""
    OUT_OF_MEMORY = 80
    DIVERGED = 81
    """The loss is NaN or infinite."""
    FENCED = 83
    """A newer attempt owns the run."""


class RetryClass(IntEnum):
    """Whether another attempt follows a failure, and which limit it counts against. Most severe first."""

    PERMANENT = 0
    """The same input would fail again. Not retried."""
    RETRYABLE = 1
    """Retried. Counts against `restart.maxRestarts`."""
    DISRUPTION = 2
    """Not caused by the stage. Retried. Counts against `restart.maxDisruptions`."""


PERMANENT_EXIT_CODES = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.BAD_DATA,
        ExitCode.MODEL_UNUSABLE,
        ExitCode.ACCESS_DENIED,
        ExitCode.BAD_CONFIG,
        ExitCode.PROGRAM_ERROR,
    }
)
_FREE = frozenset({ExitCode.STOPPED, ExitCode.FENCED})


def retry_class(exit_code: int) -> RetryClass:
    """Return the retry class of a non-zero exit status. A status that is not in `ExitCode` (a signal, a crash) is
    retryable."""
    if exit_code in PERMANENT_EXIT_CODES:
        return RetryClass.PERMANENT
    return RetryClass.DISRUPTION if exit_code in _FREE else RetryClass.RETRYABLE


def name_of(exit_code: int) -> str:
    """`BadData`, `OutOfMemory`, `Signal9`, `Exit3`: the name of an exit status in status and logs."""
    if exit_code in ExitCode._value2member_map_:
        return "".join(word.capitalize() for word in ExitCode(exit_code).name.split("_"))
    return f"Signal{exit_code - 128}" if 128 < exit_code < 192 else f"Exit{exit_code}"


def resources_field(stage: str) -> str:
    """Return the path of the field with the resources of a stage's pods; only training uses those of the workers."""
    return f"spec.stages.{stage}.resources" if stage in {Stage.PREPARE, Stage.EVALUATE} else "spec.workers.resources"


def out_of_memory_advice(stage: str) -> str:
    """Return how to correct an out-of-memory failure of a stage, as a clause. Only training has batches to reduce."""
    limit = f"raise {resources_field(stage)}.limits.memory"
    match stage:
        case Stage.TRAIN:
            smaller = "lower spec.training.microBatchSize or spec.data.maxLength"
            return f"{smaller}, raise spec.deepspeed.zeroStage, or {limit}"
        case Stage.PREPARE:
            return f"{limit}, or prepare fewer or smaller files"
    return limit
