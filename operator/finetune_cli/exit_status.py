"""Exit statuses of the commands. Pure.

| status | meaning |
|---|---|
| 0 | succeeded |
| 1 | the run failed, but a retry might succeed |
| 2 | the command line is wrong |
| 3 | suspended with a saved checkpoint; the same command resumes |
| 65 | the job or its data is invalid |
| 66 | a file, the job or the base model is missing or unusable |
| 69 | object storage or the cluster is unreachable |
| 77 | object storage, the hub or the cluster denied access |
| 78 | the job cannot be trained as configured, or a required kubeconfig, context or CRD does not exist |
| 79 | an error in the program, which a retry of the same job would cause again |
| 130 | stopped immediately: by a second Ctrl-C, or by the first one if there is nothing to save |

If a run has failed permanently, 65, 66, 77, 78 and 79 are the exit codes of the trainer.
"""

from finetune_api.constants import Phase
from finetune_api.exit_codes import PERMANENT_EXIT_CODES, ExitCode
from finetune_api.v1alpha1 import Status
from finetune_trainer.errors import TrainerError

from .job_file import JobFileError, JobFileMissingError
from .local.engine import KilledError
from .local.seaweed import EmbeddedStoreError

SUCCEEDED = 0
FAILED = 1
USAGE = 2
SUSPENDED = 3
KILLED = 130


class CommandError(Exception):
    """A command failed. The message states why and how to correct it."""

    def __init__(self, message: str, exit_status: int = FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class MissingJobError(CommandError):
    """The job does not exist in the work folder or in the cluster."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.MODEL_UNUSABLE)


USER_ERRORS = (CommandError, JobFileError, EmbeddedStoreError, TrainerError, KilledError)
"""Errors that the user can correct. They are shown as one message, without a traceback."""


def of_status(status: Status) -> int:
    """Exit status of `finetune run` and `finetune watch` for a job that has ended or been suspended."""
    if status.phase is Phase.SUCCEEDED:
        return SUCCEEDED
    if status.phase is Phase.SUSPENDED:
        return SUSPENDED
    if status.phase is Phase.INVALID:
        return ExitCode.BAD_DATA
    if status.run.failure is not None and status.run.failure.exit_code in PERMANENT_EXIT_CODES:
        return status.run.failure.exit_code
    return FAILED


def of_error(error: Exception) -> int:
    """Exit status for one of USER_ERRORS."""
    match error:
        case CommandError():
            return error.exit_status
        case JobFileMissingError():
            return ExitCode.MODEL_UNUSABLE
        case JobFileError():
            return ExitCode.BAD_DATA
        case EmbeddedStoreError():
            return ExitCode.STORAGE_UNREACHABLE
        case TrainerError():
            return error.exit_code
        case _:
            return KILLED


def explain(error: Exception) -> str:
    """What to print for one of USER_ERRORS."""
    if isinstance(error, KilledError):
        return "stopped without saving; the same command resumes from the last committed checkpoint"
    advice = error.advice if isinstance(error, TrainerError) else ""
    return f"{error}\n{advice}" if advice else str(error)
