"""Work that all ranks do together, with one outcome: where it fails on one rank, it fails on all, by the same error.

Otherwise a rank that failed would leave while the others wait for it until the process group's time-out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from .. import errors
from ..errors import TrainerError

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    rank: int
    kind: str
    message: str
    advice: str

    def error(self) -> TrainerError:
        kind = cast(type[TrainerError], getattr(errors, self.kind, TrainerError))
        return kind(f"rank {self.rank}: {self.message}", advice=self.advice)


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    value: T | None = None
    failure: _Failure | None = None


def everywhere(action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank. Returns all results, by rank; the error of the lowest rank that failed ends all."""
    try:
        mine = _Outcome(action())
    except Exception as error:
        first = _first_failure(_exchange(_Outcome[T](failure=_failure(error))))
        assert first is not None
        if first.rank == _rank():
            raise
        raise first.error() from error
    outcomes = _exchange(mine)
    if (first := _first_failure(outcomes)) is not None:
        raise first.error()
    return [cast(T, outcome.value) for outcome in outcomes]


def together(action: Callable[[], T]) -> T:
    """Like `everywhere`, but the results stay where they are."""
    mine: list[T] = []
    everywhere(lambda: mine.append(action()))
    return mine[0]


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 alone; its result, or its error, reaches every rank."""
    box: list[_Outcome[T]] = [_Outcome()]
    if _rank() == 0:
        try:
            box = [_Outcome(action())]
        except Exception as error:
            _broadcast([_Outcome[T](failure=_failure(error))])
            raise
    _broadcast(box)
    if box[0].failure is not None:
        raise box[0].failure.error()
    return cast(T, box[0].value)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _failure(error: Exception) -> _Failure:
    kind = type(error).__name__
    if isinstance(error, TrainerError):
        return _Failure(_rank(), kind, str(error), error.advice)
    return _Failure(_rank(), TrainerError.__name__, f"{kind}: {error}", "")


def _first_failure(outcomes: list[_Outcome[T]]) -> _Failure | None:
    return next((outcome.failure for outcome in outcomes if outcome.failure is not None), None)


def _exchange(mine: _Outcome[T]) -> list[_Outcome[T]]:
    if not dist.is_initialized():
        return [mine]
    outcomes: list[_Outcome[T]] = [mine] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    return outcomes


def _broadcast(box: list[_Outcome[T]]) -> None:
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
