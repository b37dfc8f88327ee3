"""Errors that a user can act on. Each has an exit code, from which the operator decides whether to retry.

The codes are those of `finetune_api.exit_codes.ExitCode`; operator and trainer define their meaning.

TrainerError
├── UsageError                64  the command line or the environment of a process is wrong
├── BadDataError              65  a record, a file or a split that cannot be used
├── ModelUnusableError        66  the base model is missing, incomplete or of the wrong kind
│   └── ExportUnusableError       an exported folder is not the trained model
├── StorageUnreachableError   69  object storage does not answer, even after retries
├── AccessDeniedError         77  object storage or the hub rejects the credentials
├── BadConfigError            78  the configuration requires something that is not available (bucket, GPU, memory)
│   └── ObjectMissingError        an object is missing in storage
├── MemoryExhaustedError      80  an allocation failed
├── DivergedError             81  the loss is NaN or infinite
├── FencedError               83  a newer attempt owns the run
├── StoppedError              75  stopped on request, state saved; not a failure
├── DiskFullError             70  a file cannot be written because the disk is full
├── StorageProtocolError      70  object storage rejects a request for another reason
└── CorruptCheckpointError    70  a checkpoint's bytes are missing or differ from what was committed
    └── NewerCheckpointError      it was written by a newer version
For any other exception, `is_program_error` distinguishes errors that would occur again with the same input (79) from
internal errors that may not occur again in a retry (70).
"""

from typing import ClassVar

from finetune_api.exit_codes import ExitCode


class TrainerError(Exception):
    """`str(error)` states what is wrong and where; `advice` states how to fix it."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL_ERROR

    def __init__(self, message: str, *, advice: str = "") -> None:
        # Names from files may contain lone surrogates, which cannot be encoded as UTF-8 for logs and messages.
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
    """An exported folder cannot be loaded, or its metrics differ from those of the trained model."""


class StorageUnreachableError(TrainerError):
    """Object storage does not answer, even after retries."""

    exit_code = ExitCode.STORAGE_UNREACHABLE


class AccessDeniedError(TrainerError):
    """Object storage or the hub rejects the credentials."""

    exit_code = ExitCode.ACCESS_DENIED


class BadConfigError(TrainerError):
    """The configuration requires something that is not available: a bucket, a GPU, memory."""

    exit_code = ExitCode.BAD_CONFIG


class ObjectMissingError(BadConfigError):
    """An object is missing in storage."""


class MemoryExhaustedError(TrainerError):
    """An allocation failed."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DivergedError(TrainerError):
    """The loss is NaN or infinite."""

    exit_code = ExitCode.DIVERGED


class FencedError(TrainerError):
    """A newer attempt owns the run, so this one must not write anymore."""

    exit_code = ExitCode.FENCED


class StoppedError(TrainerError):
    """Stopped on request, state saved."""

    exit_code = ExitCode.STOPPED


class DiskFullError(TrainerError):
    """A file cannot be written because the disk is full. The message names the path."""


class StorageProtocolError(TrainerError):
    """Object storage rejects a request for another reason, or its response is not what was requested."""


class CorruptCheckpointError(TrainerError):
    """Bytes of a checkpoint are missing or differ from what was committed. The previous one is restored instead."""


class NewerCheckpointError(CorruptCheckpointError):
    """A newer version has written the checkpoint. It is intact, so the run does not fall back to an older one."""


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
    "the same job would fail again in the same way, so it is not retried; see the traceback in the log. "
    "Change the job or the image, and report the error if the job is correct"
)


def is_program_error(error: BaseException) -> bool:
    """Whether the error depends only on code and input, so that a retry would raise it again.

    False for errors that depend on the network or on other processes: OSError (some of its subclasses are also
    ValueErrors) and the RuntimeErrors of torch.
    """
    return isinstance(error, _PROGRAM_ERRORS) and not isinstance(error, OSError)


def described(error: BaseException) -> str:
    """Return type and message, such as `KeyError: 'weight'`, as printable text."""
    return printable(f"{type(error).__name__}: {error}")


def printable(text: str) -> str:
    """Replace lone surrogates, which occur in users' data and cannot be encoded as UTF-8, by escape sequences."""
    return text.encode(errors="backslashreplace").decode()


_CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is an out-of-memory error of Python, CUDA or torch's CPU allocator. Does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_OUT_OF_MEMORY)
