"""A queue of keys with the semantics of client-go's workqueue, for one event loop. Not thread-safe.

A key is queued at most once and processed by at most one worker at a time. Retries are delayed with exponential
back-off.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from finetune_api.backoff import backoff_seconds

Key = TypeVar("Key", bound=Hashable)


@dataclass(order=True)
class _Due:
    at: float
    number: int
    key: object = field(compare=False)


@dataclass
class _Hold:
    """A key that a worker processes."""

    again: bool = False
    """Whether the key was added during processing."""
    released: asyncio.Event = field(default_factory=asyncio.Event)


class KeyedQueue(Generic[Key]):
    """Keys to reconcile, in the order in which they were added."""

    def __init__(
        self,
        *,
        first_backoff_seconds: float = 0.5,
        max_backoff_seconds: float = 60.0,
        added: Callable[[], None] = lambda: None,
        taken: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`added` is called for every added key, `taken` with the seconds that a key has waited."""
        self._added, self._taken = added, taken
        self._first, self._max = first_backoff_seconds, max_backoff_seconds
        self._waiting: dict[Key, float] = {}
        """Key -> time when it was added. A dict preserves the order."""
        self._working: dict[Key, _Hold] = {}
        self._later: list[_Due] = []
        self._due: dict[Key, float] = {}
        """Key -> earliest time at which it is added by a timer."""
        self._failures: dict[Key, int] = {}
        self._numbers = itertools.count()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Number of keys that are being processed."""
        return len(self._working)

    @property
    def later(self) -> int:
        """Number of keys with a timer."""
        return len(self._due)

    def oldest_seconds(self) -> float:
        """Return how long the oldest key has waited; 0 if the queue is empty."""
        first = next(iter(self._waiting.values()), None)
        return 0.0 if first is None else self._now() - first

    def add(self, key: Key) -> None:
        """Add a key. A queued key keeps its position; a key that is being processed is added again afterwards."""
        if key in self._working:
            self._working[key].again = True
        elif key not in self._waiting:
            self._waiting[key] = self._now()
            self._added()
            self._due.pop(key, None)  # the next reconcile sets a new timer
        self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Add a key after this time, unless it is added earlier."""
        at = self._now() + seconds
        if key in self._waiting or at >= self._due.get(key, float("inf")):
            return
        self._due[key] = at
        heapq.heappush(self._later, _Due(at, next(self._numbers), key))
        self._changed.set()

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """Add a key after a failure with exponential back-off. Returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = max(at_least, backoff_seconds(failures, self._first, self._max))
        self.add_after(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """Reset the back-off of a key after a success."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for the next key. No other worker gets it until `done` is called."""
        while True:
            self._move_due()
            if self._waiting:
                key = next(iter(self._waiting))
                self._taken(self._now() - self._waiting.pop(key))
                self._working[key] = _Hold()
                return key
            self._changed.clear()
            wait = self._later[0].at - self._now() if self._later else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """Mark the processing of a key as completed."""
        hold = self._working.pop(key)
        hold.released.set()
        if hold.again:
            self.add(key)

    async def released(self, key: Key) -> None:
        """Wait until the key is not being processed."""
        hold = self._working.get(key)
        if hold is not None:
            await hold.released.wait()

    def _move_due(self) -> None:
        while self._later and self._later[0].at <= self._now():
            due = heapq.heappop(self._later)
            key: Key = due.key  # type: ignore[assignment]
            if self._due.get(key) == due.at:  # else the timer was replaced
                del self._due[key]
                self.add(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
