"""Serialization of errors, to raise them in another process."""

from pydantic import ValidationError

from finetune_api.trainer_config import Message

from . import errors
from .errors import TrainerError


class Failure(Message):
    """A serialized error. An error that is not a TrainerError becomes one whose text includes its type."""

    kind: str
    message: str
    advice: str = ""

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Serialize `error`."""
        kind = type(error).__name__
        if isinstance(error, TrainerError):
            return cls(kind=kind, message=str(error), advice=error.advice)
        return cls(kind=TrainerError.__name__, message=f"{kind}: {error}")

    def error(self, *, by: str = "") -> TrainerError:
        """Return the error; the text starts with `by`, which names who raised it."""
        kind = getattr(errors, self.kind, TrainerError)
        assert issubclass(kind, TrainerError)
        return kind(f"{by}: {self.message}" if by else self.message, advice=self.advice)


def first_fault(error: ValidationError) -> str:
    """Describe the first error in one line, with the path of its field."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
