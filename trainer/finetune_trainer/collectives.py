"""Collectives for numbers and Python values, and actions whose errors are raised on all ranks.

If an action fails on one rank, the same error is raised on all of them. Otherwise the failed rank would exit while
the others wait for it.

Values are exchanged as JSON, never as pickles: otherwise anyone who can reach a rank's port could run code in it.
They use a separate process group with a long timeout, because a rank may download, merge or upload a whole model in
the meantime, which takes longer than the timeout of the collectives of a training step. A rank that dies closes its
connections, so the ranks that wait for it fail at once. `sum_over_ranks` and `gather_over_ranks` are called in training
steps and use the default group, with its shorter timeout.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from .errors import StoppedError, TrainerError
from .failures import Failure

T = TypeVar("T")

TIMEOUT = timedelta(days=7)
"""Maximum wait for another rank; `spec.budget.deadline` limits the run, and the operator detects lost nodes."""

_MAX_MESSAGE_BYTES = 64 << 20
"""Limit for the message of one rank. Messages have a few KB; a longer one was not sent by this program."""


class _WaitGroup:
    """The process group in which ranks wait for each other; None: the default group."""

    group: Any = None


def open_waiting_group() -> None:
    """Create the group with the long timeout. Collective; the default group must be initialized."""
    _WaitGroup.group = dist.new_group(backend="gloo", timeout=TIMEOUT)


def forget_waiting_group() -> None:
    """Forget the group, after the process groups of this process were destroyed."""
    _WaitGroup.group = None


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank. Collective; waits for all ranks."""
    summed = torch.tensor([float(flag)])
    dist.all_reduce(summed, group=_WaitGroup.group)
    return bool(summed > 0)


def stop_if_agreed(requested: bool, *, where: str) -> None:
    """Raise StoppedError on every rank if a stop is requested on any rank. Collective."""
    if any_rank(requested):
        raise StoppedError(f"stopped on request {where}; there is no new state to save")


def sum_over_ranks(values: list[float]) -> list[float]:
    """Return the element-wise sum in 64 bit, the same on every rank. Collective."""
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def gather_over_ranks(value: float) -> list[float]:
    """Return every rank's value, in the order of the ranks. Collective."""
    values = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    values[dist.get_rank()] = value
    dist.all_reduce(values)
    return values.tolist()


def gather_all(action: Callable[[], T], kind: Any) -> list[T]:
    """Run `action` on every rank and return the results of all ranks, in the order of the ranks.

    `kind` is the type of the result, which must be serializable to JSON by pydantic's TypeAdapter. If the action
    fails on any rank, the error of the lowest such rank is raised on every rank.
    """
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        mine = _Outcome(value=adapter.dump_json(action()).decode())
    except Exception as error:
        first = _first_failed(_exchange(_failed(error)))
        assert first is not None
        if first.rank == _rank():
            raise
        raise first.raised() from error
    outcomes = _exchange(mine)
    if (first := _first_failed(outcomes)) is not None:
        raise first.raised()
    return [adapter.validate_json(outcome.value) for outcome in outcomes]


def all_ranks(action: Callable[[], T]) -> T:
    """Run `action` on every rank and return this rank's result, of any type. Errors are raised as in `gather_all`."""
    mine: list[T] = []
    gather_all(lambda: mine.append(action()), None)
    return mine[0]


def rank_zero(action: Callable[[], T], kind: Any) -> T:
    """Run `action` on rank 0 only; return its result, or raise its error, on every rank. `kind` as in `gather_all`."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    outcome = _Outcome()
    if _rank() == 0:
        try:
            outcome = _Outcome(value=adapter.dump_json(action()).decode())
        except Exception as error:
            _broadcast(_failed(error))
            raise
    outcome = _broadcast(outcome)
    if outcome.failure is not None:
        raise outcome.raised()
    return adapter.validate_json(outcome.value)


@dataclass(frozen=True)
class _Outcome:
    value: str = ""
    """JSON."""
    rank: int = 0
    failure: Failure | None = None

    def raised(self) -> TrainerError:
        """Return the error that the other ranks raise."""
        assert self.failure is not None
        return self.failure.error(by=f"rank {self.rank}")

    def encode(self) -> torch.Tensor:
        failure = None if self.failure is None else self.failure.model_dump()
        text = json.dumps({"value": self.value, "rank": self.rank, "failure": failure})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    @classmethod
    def decode(cls, content: torch.Tensor) -> "_Outcome":
        document = json.loads(content.numpy().tobytes())
        failure = document["failure"]
        return cls(document["value"], document["rank"], None if failure is None else Failure.model_validate(failure))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _failed(error: Exception) -> _Outcome:
    return _Outcome(rank=_rank(), failure=Failure.of(error))


def _first_failed(outcomes: list[_Outcome]) -> _Outcome | None:
    return next((outcome for outcome in outcomes if outcome.failure is not None), None)


def _exchange(mine: _Outcome) -> list[_Outcome]:
    if not dist.is_initialized():
        return [mine]
    content, group = mine.encode(), _WaitGroup.group
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([content.numel()]), group=group)
    lengths = [_checked(int(size)) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: content.numel()] = content
    received = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group)
    return [_Outcome.decode(each[:length]) for each, length in zip(received, lengths, strict=True)]


def _broadcast(mine: _Outcome) -> _Outcome:
    """Return rank 0's outcome on every rank."""
    if not dist.is_initialized():
        return mine
    content, group = mine.encode(), _WaitGroup.group
    size = torch.tensor([content.numel()])
    dist.broadcast(size, src=0, group=group)
    if _rank() != 0:
        content = torch.zeros(_checked(int(size)), dtype=torch.uint8)
    dist.broadcast(content, src=0, group=group)
    return _Outcome.decode(content)


def _checked(size: int) -> int:
    if not 0 < size <= _MAX_MESSAGE_BYTES:
        raise TrainerError(f"a message from another rank must have 1 to {_MAX_MESSAGE_BYTES} bytes, not {size}")
    return size
