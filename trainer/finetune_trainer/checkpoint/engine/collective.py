"""Work that all ranks do together, with one outcome: where it fails on one rank, it fails on all, by the same error.

Otherwise a rank that failed would leave while the others wait for it until the process group's time-out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch.distributed as dist

from ...errors import TrainerError
from ..format.failures import Failure

T = TypeVar("T")


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    value: T | None = None
    rank: int = 0
    failure: Failure | None = None

    def raised(self) -> TrainerError:
        """The failure as every other rank sees it."""
        assert self.failure is not None
        return self.failure.error(by=f"rank {self.rank}")


def everywhere(action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank. Returns all results, by rank; the error of the lowest rank that failed ends all."""
    try:
        mine = _Outcome(action())
    except Exception as error:
        first = _first_failed(_exchange(_failed(error)))
        assert first is not None
        if first.rank == _rank():
            raise
        raise first.raised() from error
    outcomes = _exchange(mine)
    if (first := _first_failed(outcomes)) is not None:
        raise first.raised()
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
            _broadcast([_failed(error)])
            raise
    _broadcast(box)
    if box[0].failure is not None:
        raise box[0].raised()
    return cast(T, box[0].value)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _failed(error: Exception) -> _Outcome[Any]:
    return _Outcome(rank=_rank(), failure=Failure.of(error))


def _first_failed(outcomes: list[_Outcome[T]]) -> _Outcome[T] | None:
    return next((outcome for outcome in outcomes if outcome.failure is not None), None)


def _exchange(mine: _Outcome[T]) -> list[_Outcome[T]]:
    if not dist.is_initialized():
        return [mine]
    outcomes: list[_Outcome[T]] = [mine] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    return outcomes


def _broadcast(box: list[_Outcome[T]]) -> None:
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
