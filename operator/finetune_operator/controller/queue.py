"""A queue of keys: each at most once, never two workers on one key, failures wait longer each time.

What client-go's workqueue is to Go controllers. For one event loop; nothing here is shared between threads.
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
    """A worker has a key."""

    again: bool = False
    """It was added meanwhile."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


class KeyedQueue(Generic[Key]):
    """Keys that want to be looked at, in the order in which they were added."""

    def __init__(
        self,
        *,
        first_backoff_seconds: float = 0.5,
        max_backoff_seconds: float = 60.0,
        added: Callable[[], None] = lambda: None,
        taken: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`added` hears of every key that is put in, `taken` how many seconds one that is taken has waited."""
        self._added, self._taken = added, taken
        self._first, self._max = first_backoff_seconds, max_backoff_seconds
        self._waiting: dict[Key, float] = {}
        """Key -> when it was added; a dict keeps the order."""
        self._working: dict[Key, _Hold] = {}
        self._later: list[_Due] = []
        self._due: dict[Key, float] = {}
        """Key -> the earliest time at which it comes back by itself."""
        self._failures: dict[Key, int] = {}
        self._numbers = itertools.count()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Keys that workers have now."""
        return len(self._working)

    @property
    def later(self) -> int:
        """Keys that come back by themselves."""
        return len(self._due)

    def oldest_seconds(self) -> float:
        """How long the first key has waited; 0 where none waits."""
        first = next(iter(self._waiting.values()), None)
        return 0.0 if first is None else self._now() - first

    def add(self, key: Key) -> None:
        """Look at the key soon. One that waits already keeps its place; one in work comes again afterwards."""
        if key in self._working:
            self._working[key].again = True
        elif key not in self._waiting:
            self._waiting[key] = self._now()
            self._added()
            self._due.pop(key, None)  # looking now makes looking later the next look's business
        self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at the key in so many seconds, unless something brings it sooner."""
        at = self._now() + seconds
        if key in self._waiting or at >= self._due.get(key, float("inf")):
            return
        self._due[key] = at
        heapq.heappush(self._later, _Due(at, next(self._numbers), key))
        self._changed.set()

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """After a failure: look again, later each time; returns the wait in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = max(at_least, backoff_seconds(failures, self._first, self._max))
        self.add_after(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """The key is well: its next failure is a first one."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key; it is the caller's alone until `done`."""
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
        """The caller has finished with the key."""
        hold = self._working.pop(key)
        hold.over.set()
        if hold.again:
            self.add(key)

    async def released(self, key: Key) -> None:
        """Wait for the end of the work on the key that is under way, if any is."""
        hold = self._working.get(key)
        if hold is not None:
            await hold.over.wait()

    def _move_due(self) -> None:
        while self._later and self._later[0].at <= self._now():
            due = heapq.heappop(self._later)
            key: Key = due.key  # type: ignore[assignment]
            if self._due.get(key) == due.at:  # else an earlier or later wish has taken its place
                del self._due[key]
                self.add(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
