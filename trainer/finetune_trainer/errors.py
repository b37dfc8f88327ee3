"""Errors that a user can do something about, each with the exit code that tells the operator what to do next.

TrainerError
├── UsageError                64  the command line or the environment of a process is wrong
├── BadDataError              65  a record, a file or a split that cannot be used
├── ModelUnusableError        66  the base model is missing, incomplete or of the wrong kind
│   └── ExportUnusableError       an exported folder is not the model that was trained
├── StorageUnreachableError   69  object storage does not answer, also after retries
├── AccessDeniedError         77  object storage or the hub refuses the credentials
├── BadConfigError            78  the configuration asks for what is not there (bucket, GPU, memory)
│   └── ObjectMissingError        an object that should be in storage is not
├── MemoryExhaustedError      80  an allocation failed
├── DivergedError             81  the loss is NaN or infinite
├── FencedError               83  a newer attempt owns the run
├── StoppedError              75  stopped on request, state saved; not a failure
├── DiskFullError             70  a file cannot be written for want of space
├── StorageProtocolError      70  object storage refuses a request for a reason of its own
└── CorruptCheckpointError    70  a checkpoint's bytes are missing or are not what was committed
    └── NewerCheckpointError      a newer version has written it
Of anything else, `is_program_error` tells what the same input would meet again (79) from an internal error that may
pass (70).
"""

from typing import ClassVar

from finetune_api.exit_codes import ExitCode


class TrainerError(Exception):
    """`str(error)` says what is wrong and where; `advice` says what to do instead."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL_ERROR

    def __init__(self, message: str, *, advice: str = "") -> None:
        # Names from files may hold halves of surrogate pairs, which no log and no message can carry.
        super().__init__(printable(message))
        self.advice = printable(advice)


class UsageError(TrainerError):
    """The command line or the environment of a process is wrong. The message names the variable."""

    exit_code = ExitCode.USAGE


class BadDataError(TrainerError):
    """A record, a file or a split cannot be used. The message names file and line."""

    exit_code = ExitCode.BAD_DATA


class ModelUnusableError(TrainerError):
    """The base model is missing, incomplete or of the wrong kind."""

    exit_code = ExitCode.MODEL_UNUSABLE


class ExportUnusableError(ModelUnusableError):
    """An exported folder cannot be loaded, or gives other figures than the model that was trained."""


class StorageUnreachableError(TrainerError):
    """Object storage does not answer, also after retries."""

    exit_code = ExitCode.STORAGE_UNREACHABLE


class AccessDeniedError(TrainerError):
    """Object storage or the hub refuses the credentials."""

    exit_code = ExitCode.ACCESS_DENIED


class BadConfigError(TrainerError):
    """The configuration asks for what is not there: a bucket, a GPU, memory."""

    exit_code = ExitCode.BAD_CONFIG


class ObjectMissingError(BadConfigError):
    """An object that should be in storage is not."""


class MemoryExhaustedError(TrainerError):
    """An allocation failed."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DivergedError(TrainerError):
    """The loss is NaN or infinite."""

    exit_code = ExitCode.DIVERGED


class FencedError(TrainerError):
    """A newer attempt owns the run; this one must not write any more."""

    exit_code = ExitCode.FENCED


class StoppedError(TrainerError):
    """Stopped on request, state saved."""

    exit_code = ExitCode.STOPPED


class DiskFullError(TrainerError):
    """A file cannot be written for want of space. The message names the path."""


class StorageProtocolError(TrainerError):
    """Object storage refuses a request for a reason of its own, or answers with other bytes than asked for."""


class CorruptCheckpointError(TrainerError):
    """A checkpoint's bytes are missing or are not what was committed. Restoring goes back to the one before."""


class NewerCheckpointError(CorruptCheckpointError):
    """A newer version has written it. Nothing is wrong with it, so a run that finds it does not go back."""


_PROGRAM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)

PROGRAM_ERROR_ADVICE = (
    "the same job would fail again in the same way, so it is not retried; the traceback in the log says where. "
    "Change the job or the image, and report it if the job looks right"
)


def is_program_error(error: BaseException) -> bool:
    """True for an error that follows from code and input alone, so that a retry meets it again.

    Not for what depends on the network or on other processes: OSError (some of its subclasses are ValueErrors too) and
    the RuntimeErrors of torch.
    """
    return isinstance(error, _PROGRAM_ERRORS) and not isinstance(error, OSError)


def described(error: BaseException) -> str:
    """`KeyError: 'weight'`, as text that JSON and a terminal can hold."""
    return printable(f"{type(error).__name__}: {error}")


def printable(text: str) -> str:
    """Halves of surrogate pairs, which come from users' data and no file can hold, as escapes."""
    return text.encode(errors="backslashreplace").decode()
