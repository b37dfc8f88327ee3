"""Errors on their way to another process: as a message, and as an error again."""

from pydantic import ValidationError

from finetune_api.trainer_config import Message

from ... import errors
from ...errors import TrainerError


class Failure(Message):
    """What has gone wrong. Anything but a TrainerError arrives as one whose text names the kind."""

    kind: str
    message: str
    advice: str = ""

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """The message for `error`."""
        kind = type(error).__name__
        if isinstance(error, TrainerError):
            return cls(kind=kind, message=str(error), advice=error.advice)
        return cls(kind=TrainerError.__name__, message=f"{kind}: {error}")

    def error(self, *, by: str = "") -> TrainerError:
        """The error again; `by` says in front of its text who had it."""
        kind = getattr(errors, self.kind, TrainerError)
        assert issubclass(kind, TrainerError)
        return kind(f"{by}: {self.message}" if by else self.message, advice=self.advice)


def first_fault(error: ValidationError) -> str:
    """What is wrong with the first field that is, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
